//! Finding what the rules name and cutting it out of the payload's text.
//! Invariant: edits are disjoint and in the order of the text, so applying them is one pass and every byte outside
//! of them stays. Never rebuilds JSON: key order, spacing, numbers and doubled members survive (of doubled
//! members each is redacted, or a second one would carry the secret through).

use std::{borrow::Cow, fmt, ops::Range};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    action::{Action, Hasher, MASK},
    pointer::Segment,
};

/// The rules that still apply below a value: what is left of each path, and its action.
type Rules<'r> = [(&'r [Segment], Action)];

pub(crate) struct Edits<'t> {
    text: &'t str,
    hasher: &'t Hasher,
    edits: Vec<(Range<usize>, Cow<'static, str>)>,
}

impl<'t> Edits<'t> {
    pub(crate) fn new(text: &'t str, hasher: &'t Hasher) -> Self {
        Self { text, hasher, edits: Vec::new() }
    }

    /// Looks for what the rules name in `value` and below. Goes only where a rule leads.
    pub(crate) fn visit(&mut self, value: &'t RawValue, rules: &Rules<'_>) -> Result<(), serde_json::Error> {
        if let Some(action) = due(rules) {
            let replacement = match action {
                Action::Hash => self.hasher.json(value.get()).into(),
                // The caller cuts what is to be dropped; of the root nothing would be left, so it is masked.
                Action::Mask | Action::Drop => MASK.into(),
            };
            self.edits.push((self.span(value.get()), replacement));
            return Ok(());
        }
        match value.get().as_bytes().first() {
            _ if rules.is_empty() => Ok(()),
            Some(b'{') => {
                let Members(members) = serde_json::from_str(value.get())?;
                let children = members.into_iter().map(|(key, value)| {
                    let name: Cow<'_, str> = serde_json::from_str(key.get()).map(Cow::<str>::Owned)?;
                    Ok((self.span(key.get()).start, value, below(rules, |s| s.is_member(&name))))
                });
                let children = children.collect::<Result<Vec<_>, serde_json::Error>>()?;
                self.visit_children(&children)
            }
            Some(b'[') => {
                let Elements(elements) = serde_json::from_str(value.get())?;
                let child = |(i, value): (usize, &'t RawValue)| {
                    (self.span(value.get()).start, value, below(rules, |s| s.is_element(i)))
                };
                let children: Vec<_> = elements.into_iter().enumerate().map(child).collect();
                self.visit_children(&children)
            }
            _ => Ok(()),
        }
    }

    fn visit_children(&mut self, children: &[Child<'t, '_>]) -> Result<(), serde_json::Error> {
        let dropped = |child: &Child<'_, '_>| due(&child.2) == Some(Action::Drop);
        let mut i = 0;
        while i < children.len() {
            let run = children[i..].iter().take_while(|c| dropped(c)).count();
            if run > 0 {
                self.cut(children, i..i + run);
                i += run;
            } else {
                self.visit(children[i].1, &children[i].2)?;
                i += 1;
            }
        }
        Ok(())
    }

    /// Cuts neighbouring children out with as many commas: up to the next child where there is one, else from
    /// the end of the one before.
    fn cut(&mut self, children: &[Child<'t, '_>], run: Range<usize>) {
        let end_of = |i: usize| self.span(children[i].1.get()).end;
        let range = match (run.start, children.get(run.end)) {
            (first, Some(next)) => children[first].0..next.0,
            (0, None) => children[0].0..end_of(run.end - 1),
            (first, None) => end_of(first - 1)..end_of(run.end - 1),
        };
        self.edits.push((range, "".into()));
    }

    /// Where a slice of the text lies in it.
    fn span(&self, slice: &str) -> Range<usize> {
        let start = slice.as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + slice.len()
    }

    /// The text with every edit made.
    pub(crate) fn apply(self) -> String {
        let mut out = String::with_capacity(self.text.len());
        let mut done = 0;
        for (range, replacement) in self.edits {
            out.push_str(&self.text[done..range.start]);
            out.push_str(&replacement);
            done = range.end;
        }
        out.push_str(&self.text[done..]);
        out
    }
}

/// Where the child begins (its name, in an object), its value, and the rules below it.
type Child<'t, 'r> = (usize, &'t RawValue, Vec<(&'r [Segment], Action)>);

/// The action on this very value, if a rule ends here; the strongest where several do.
fn due(rules: &Rules<'_>) -> Option<Action> {
    rules.iter().filter(|(path, _)| path.is_empty()).map(|(_, action)| *action).max()
}

/// The rules whose next step leads to a child.
fn below<'r>(rules: &Rules<'r>, leads: impl Fn(&Segment) -> bool) -> Vec<(&'r [Segment], Action)> {
    let step = |(path, action): &(&'r [Segment], Action)| {
        let (first, rest) = path.split_first()?;
        leads(first).then_some((rest, *action))
    };
    rules.iter().filter_map(step).collect()
}

/// The members of an object as slices of its text, doubled names and all.
struct Members<'t>(Vec<(&'t RawValue, &'t RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The elements of an array as slices of its text.
struct Elements<'t>(Vec<&'t RawValue>);

impl<'de> Deserialize<'de> for Elements<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Elements<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                }
                Ok(Elements(elements))
            }
        }
        deserializer.deserialize_seq(Collect)
    }
}
