//! What the words of a script mean. Invariant: reading never fails; past the end everything is zero. Texts may be no
//! UTF-8 and bytes may be anywhere in memory: a guest that breaks its language's rules is what the host is there for.

/// Lengths on both sides of the host's bounds.
const LENGTHS: [usize; 16] =
    [0, 1, 2, 127, 129, 255, 256, 1024, 1025, 4096, 16_384, 16_385, 65_536, 262_144, 1 << 20, (1 << 20) + 1];

/// What a call hands to the host.
pub enum Bytes {
    Own(Vec<u8>),
    /// A place and a length, whatever is there.
    Anywhere(u32, u32),
}

impl Bytes {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Bytes::Own(bytes) => bytes,
            // SAFETY: nothing is read here; the host is told where to read, and must see whether that is memory.
            Bytes::Anywhere(place, len) => unsafe { std::slice::from_raw_parts(*place as *const u8, *len as usize) },
        }
    }

    /// The same, said to be text.
    pub fn text(&self) -> &str {
        // SAFETY: nothing looks into it here; that the host does is what is tried.
        unsafe { std::str::from_utf8_unchecked(self.bytes()) }
    }
}

/// A script that is being read.
pub struct Script<'s> {
    rest: &'s [u8],
    messages: u32,
}

impl<'s> Script<'s> {
    pub fn new(script: &'s [u8], messages: u32) -> Script<'s> {
        Script { rest: script, messages }
    }

    /// The next call; none at the end.
    pub fn word(&mut self) -> Option<u8> {
        let (word, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*word)
    }

    pub fn byte(&mut self) -> u8 {
        self.word().unwrap_or(0)
    }

    pub fn number(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Mostly one of the batch's.
    pub fn index(&mut self) -> u32 {
        match self.byte() {
            0xff => u32::MAX,
            0xfe => self.messages,
            0xfd => self.number(),
            byte => u32::from(byte) % self.messages.max(1),
        }
    }

    /// The next bytes as they are, one byte many times, or some place in memory.
    pub fn bytes(&mut self) -> Bytes {
        match self.byte() {
            0xf8.. => Bytes::Anywhere(self.number(), self.number()),
            0xe0.. => {
                let filling = self.byte();
                Bytes::Own(vec![filling; LENGTHS[usize::from(self.byte() % 16)]])
            }
            len => {
                let (taken, rest) = self.rest.split_at(usize::from(len % 64).min(self.rest.len()));
                self.rest = rest;
                Bytes::Own(taken.to_vec())
            }
        }
    }

    pub fn maybe(&mut self) -> Option<Bytes> {
        (self.byte() % 2 == 1).then(|| self.bytes())
    }

    /// A topic that the stage may emit to, or any.
    pub fn topic(&mut self) -> Bytes {
        if self.byte() % 4 == 3 { self.bytes() } else { Bytes::Own(b"allowed".to_vec()) }
    }

    pub fn pairs(&mut self) -> Vec<(String, String)> {
        (0..self.byte() % 70).map(|_| (name(self.byte()), name(self.byte()))).collect()
    }
}

/// Short and often the same.
fn name(byte: u8) -> String {
    String::from(char::from(byte)).repeat(usize::from(byte % 4))
}
