//! Whether swaps lost, duplicated, reordered or mixed anything. Invariant: one rule a function, each of which finds its
//! violation and no other's in the stories below. Never guesses: what no client could know is not held against the broker.

use std::collections::{BTreeMap, BTreeSet};

use super::{Asked, Delivered, Entry, Stored, Way};

/// Hands out all that was stored, with what was delivered of it.
pub(super) fn each(entries: &[Entry], mut look: impl FnMut(super::Life<'_>, &[(&str, &Delivered)])) {
    let facts = Facts::of(entries);
    for (at, entry) in entries.iter().enumerate() {
        let Entry::Stored { request, messages } = entry else { continue };
        for (asked, stored) in facts.requests[request].iter().zip(messages) {
            let life = super::Life { asked_at: *request, stored_at: at, asked, stored };
            look(life, &facts.lives[asked.tag.as_str()].delivered);
        }
    }
}

/// Every promise that was broken, in a sentence each.
pub(super) fn violations(groups: &[String], entries: &[Entry]) -> Vec<String> {
    let facts = Facts::of(entries);
    let mut found = Vec::new();
    facts.none_refused(&mut found);
    facts.none_lost(groups, &mut found);
    facts.none_twice(&mut found);
    facts.delivered_as_stored(&mut found);
    facts.in_order_of_their_key(&mut found);
    facts.handed_out_in_order(&mut found);
    facts.one_revision_a_request(&mut found);
    facts.revisions_only_rise(&mut found);
    facts.a_revision_stamps_one_thing(&mut found);
    facts.in_force_for_all_that_follow(&mut found);
    facts.the_way_out_only_rises(&mut found);
    found
}

/// What is known of one message.
struct Life<'a> {
    stored: Option<&'a Stored>,
    delivered: Vec<(&'a str, &'a Delivered)>,
}

/// A revision that was seen in force.
struct Force<'a> {
    way: Way,
    revision: u64,
    stamp: &'a str,
}

struct Facts<'a> {
    lives: BTreeMap<&'a str, Life<'a>>,
    /// Request → its messages in order. A request's number is its place among the entries.
    requests: BTreeMap<usize, &'a [Asked]>,
    /// Key → its tags in the order they were published.
    keys: BTreeMap<&'a str, Vec<&'a str>>,
    /// (group, consumer) → its answers in order.
    answers: BTreeMap<(&'a str, usize), Vec<&'a [Delivered]>>,
    refused: Vec<&'a str>,
    /// Delivered and never asked for.
    unknown: BTreeSet<&'a str>,
    force: Vec<Force<'a>>,
    /// Revisions of the topic that were seen in force, each with its place among the entries.
    known: Vec<(usize, u64)>,
}

impl<'a> Facts<'a> {
    fn of(entries: &'a [Entry]) -> Facts<'a> {
        let mut facts = Facts {
            lives: BTreeMap::new(),
            requests: BTreeMap::new(),
            keys: BTreeMap::new(),
            answers: BTreeMap::new(),
            refused: Vec::new(),
            unknown: BTreeSet::new(),
            force: Vec::new(),
            known: Vec::new(),
        };
        for (at, entry) in entries.iter().enumerate() {
            facts.take(at, entry);
        }
        // A message may be delivered before its publisher has its answer, but not before it has asked.
        for ((group, _), answers) in &facts.answers {
            for delivered in answers.iter().copied().flatten() {
                match facts.lives.get_mut(delivered.tag.as_str()) {
                    Some(life) => life.delivered.push((group, delivered)),
                    None => drop(facts.unknown.insert(&delivered.tag)),
                }
            }
        }
        facts
    }

    fn take(&mut self, at: usize, entry: &'a Entry) {
        match entry {
            Entry::Asked { request, messages } => {
                self.requests.insert(*request, messages);
                for Asked { tag, key } in messages {
                    self.lives.insert(tag, Life { stored: None, delivered: Vec::new() });
                    if let Some(key) = key {
                        self.keys.entry(key).or_default().push(tag);
                    }
                }
            }
            Entry::Stored { request, messages } => {
                for (asked, stored) in self.requests[request].iter().zip(messages) {
                    self.lives.get_mut(asked.tag.as_str()).expect("it was asked for").stored = Some(stored);
                }
            }
            Entry::Refused { why } => self.refused.push(why),
            Entry::Delivered { group, consumer, messages } => {
                self.answers.entry((group, *consumer)).or_default().push(messages);
            }
            Entry::InForce { way, revision, stamp } => {
                self.force.push(Force { way: *way, revision: *revision, stamp });
                if *way == Way::In {
                    self.known.push((at, *revision));
                }
            }
            Entry::Known { revision } => self.known.push((at, *revision)),
        }
    }

    fn stored(&self) -> impl Iterator<Item = (&'a str, &Life<'a>, &'a Stored)> {
        self.lives.iter().filter_map(|(tag, life)| Some((*tag, life, life.stored?)))
    }

    /// Nobody's request may fail because of a swap.
    fn none_refused(&self, found: &mut Vec<String>) {
        found.extend(self.refused.iter().map(|why| format!("turned away: {why}")));
    }

    fn none_lost(&self, groups: &[String], found: &mut Vec<String>) {
        for (tag, life, _) in self.stored() {
            for group in groups.iter().filter(|group| life.delivered.iter().all(|(to, _)| to != group)) {
                found.push(format!("{tag} was stored and never came to {group}"));
            }
        }
    }

    /// Nobody nacks, and no lease ends: each message comes to each group once.
    fn none_twice(&self, found: &mut Vec<String>) {
        found.extend(self.unknown.iter().map(|tag| format!("{tag} was delivered and never published")));
        for (tag, life) in &self.lives {
            let groups: BTreeSet<&str> = life.delivered.iter().map(|(group, _)| *group).collect();
            if groups.len() < life.delivered.len() {
                found.push(format!("{tag} was delivered twice to one group"));
            }
        }
        let (mut ids, mut places) = (BTreeMap::new(), BTreeMap::new());
        for (tag, _, stored) in self.stored() {
            let before = ids.insert(&stored.id, tag).or(places.insert((stored.partition, stored.offset), tag));
            if let Some(before) = before {
                found.push(format!("{before} and {tag} have one id or one place"));
            }
        }
    }

    fn delivered_as_stored(&self, found: &mut Vec<String>) {
        for (tag, life, stored) in self.stored() {
            let as_stored = |delivered: &Delivered| {
                (&delivered.id, delivered.partition, delivered.offset) == (&stored.id, stored.partition, stored.offset)
            };
            if life.delivered.iter().any(|(_, delivered)| !as_stored(delivered)) {
                found.push(format!("{tag} was delivered as another than was stored: {stored:?}"));
            }
        }
    }

    fn in_order_of_their_key(&self, found: &mut Vec<String>) {
        for (key, tags) in &self.keys {
            let stored: Vec<(&str, &Stored)> =
                tags.iter().filter_map(|tag| Some((*tag, self.lives[tag].stored?))).collect();
            for pair in stored.windows(2) {
                let [(before, first), (after, second)] = pair else { continue };
                if first.partition != second.partition || first.offset >= second.offset {
                    found.push(format!("{after} of key {key} does not stand behind {before}"));
                }
            }
        }
    }

    /// What a consumer gets of a partition it gets in the order of offsets, since nothing comes back.
    fn handed_out_in_order(&self, found: &mut Vec<String>) {
        for ((group, consumer), answers) in &self.answers {
            let mut last: BTreeMap<u32, &Delivered> = BTreeMap::new();
            for delivered in answers.iter().copied().flatten() {
                let before = last.insert(delivered.partition, delivered);
                if let Some(before) = before.filter(|before| before.offset > delivered.offset) {
                    let (before, after) = (&before.tag, &delivered.tag);
                    found.push(format!("consumer {consumer} of {group} got {after} after {before}"));
                }
            }
        }
    }

    fn one_revision_a_request(&self, found: &mut Vec<String>) {
        for (request, messages) in &self.requests {
            let lives = messages.iter().map(|asked| &self.lives[asked.tag.as_str()]);
            let revisions: BTreeSet<u64> = lives.clone().filter_map(|life| Some(life.stored?.revision)).collect();
            let stamps: BTreeSet<&str> =
                lives.flat_map(|life| life.delivered.iter().map(|(_, delivered)| delivered.stamp.as_str())).collect();
            if revisions.len() > 1 || stamps.len() > 1 {
                found.push(format!("request {request} met several revisions: {revisions:?}, stamps {stamps:?}"));
            }
        }
    }

    fn revisions_only_rise(&self, found: &mut Vec<String>) {
        let by_place: BTreeMap<(u32, u64), (&str, u64)> =
            self.stored().map(|(tag, _, stored)| ((stored.partition, stored.offset), (tag, stored.revision))).collect();
        for ((place, (tag, revision)), (next, (later, fell_to))) in by_place.iter().zip(by_place.iter().skip(1)) {
            if place.0 == next.0 && revision > fell_to {
                found.push(format!("in partition {} {tag} met {revision}, and then {later} {fell_to}", place.0));
            }
        }
    }

    /// A revision is one version with one config, and what the operator saw in force is what messages met.
    fn a_revision_stamps_one_thing(&self, found: &mut Vec<String>) {
        let mut stamps: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        for force in self.force.iter().filter(|force| force.way == Way::In) {
            stamps.entry(force.revision).or_default().insert(force.stamp);
        }
        let seen: BTreeSet<u64> = self.stored().map(|(_, _, stored)| stored.revision).collect();
        for (_, life, stored) in self.stored() {
            let of_it = stamps.entry(stored.revision).or_default();
            of_it.extend(life.delivered.iter().map(|(_, delivered)| delivered.stamp.as_str()));
        }
        for (revision, stamps) in stamps {
            if stamps.len() > 1 {
                found.push(format!("revision {revision} stamped differently: {stamps:?}"));
            }
            if !seen.contains(&revision) {
                found.push(format!("revision {revision} was in force and no message met it"));
            }
        }
    }

    /// Once a revision has been seen in force, no request that is sent later meets an older one.
    fn in_force_for_all_that_follow(&self, found: &mut Vec<String>) {
        let mut known = self.known.iter().peekable();
        let mut least = 0;
        for (request, messages) in &self.requests {
            while let Some((_, revision)) = known.next_if(|(at, _)| at < request) {
                least = least.max(*revision);
            }
            let met = messages.iter().filter_map(|asked| Some(self.lives[asked.tag.as_str()].stored?.revision));
            if let Some(met) = met.min().filter(|met| *met < least) {
                found.push(format!("request {request} met revision {met} when {least} was in force"));
            }
        }
    }

    /// What one consume hands out met one revision of the subscription's stages, and what the next one does no older one.
    fn the_way_out_only_rises(&self, found: &mut Vec<String>) {
        let out = self.force.iter().filter(|force| force.way == Way::Out);
        let rank: BTreeMap<&str, usize> = out.enumerate().map(|(rank, force)| (force.stamp, rank)).collect();
        for ((group, consumer), answers) in &self.answers {
            let mut least = 0;
            for answer in answers {
                let stamps: BTreeSet<&str> = answer.iter().filter_map(|delivered| delivered.out.as_deref()).collect();
                let ranks: Option<Vec<usize>> = stamps.iter().map(|stamp| rank.get(stamp).copied()).collect();
                let least_now = ranks.as_ref().and_then(|ranks| ranks.iter().min().copied());
                if stamps.len() > 1 || ranks.is_none() || least_now.is_some_and(|rank| rank < least) {
                    found.push(format!("consumer {consumer} of {group} met {stamps:?} on the way out, out of turn"));
                }
                least = least.max(least_now.unwrap_or(least));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, Delivered, Stored, SwapRecord, Way};

    /// A message on its way: `tag`, where it is stored, and the revision, which is also its stamp.
    #[derive(Clone, Copy)]
    struct Message(&'static str, u64, u64);

    impl Message {
        fn asked(self) -> Asked {
            Asked { tag: self.0.to_owned(), key: Some("k".to_owned()) }
        }

        fn stored(self) -> Stored {
            Stored { id: self.0.to_owned(), partition: 0, offset: self.1, revision: self.2 }
        }

        fn delivered(self) -> Delivered {
            let (tag, stamp) = (self.0.to_owned(), format!("stamp {}", self.2));
            Delivered { id: tag.clone(), tag, partition: 0, offset: self.1, stamp, out: None, trail: String::new() }
        }
    }

    const A: Message = Message("a", 0, 1);
    const B: Message = Message("b", 1, 1);
    const C: Message = Message("c", 2, 2);

    fn publish(record: &SwapRecord, messages: &[Message]) {
        let request = record.asked(messages.iter().map(|message| message.asked()).collect());
        record.stored(request, messages.iter().map(|message| message.stored()).collect());
    }

    fn deliver(record: &SwapRecord, messages: &[Message]) {
        record.delivered("g", 0, messages.iter().map(|message| message.delivered()).collect());
    }

    fn deliver_out(record: &SwapRecord, message: Message, out: &str) {
        record.delivered("g", 0, vec![Delivered { out: Some(out.to_owned()), ..message.delivered() }]);
    }

    fn violations(story: impl Fn(&SwapRecord)) -> Vec<String> {
        let record = SwapRecord::of(&["g"]);
        story(&record);
        record.violations()
    }

    #[test]
    fn a_swap_between_two_requests_breaks_nothing() {
        let found = violations(|record| {
            record.in_force(Way::In, 1, "stamp 1");
            record.in_force(Way::Out, 1, "out 1");
            publish(record, &[A, B]);
            deliver_out(record, A, "out 1");
            record.in_force(Way::In, 2, "stamp 2");
            record.in_force(Way::Out, 2, "out 2");
            // Delivered before its publisher hears of it.
            let request = record.asked(vec![C.asked()]);
            deliver_out(record, B, "out 2");
            deliver_out(record, C, "out 2");
            record.stored(request, vec![C.stored()]);
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        type Story = fn(&SwapRecord);
        let stories: &[(&str, Story)] = &[
            ("turned away: 503", |record| {
                record.asked(vec![A.asked()]);
                record.refused("503");
            }),
            ("a was stored and never came to g", |record| publish(record, &[A])),
            ("delivered twice", |record| {
                publish(record, &[A]);
                deliver(record, &[A]);
                deliver(record, &[A]);
            }),
            ("never published", |record| deliver(record, &[A])),
            ("one id or one place", |record| {
                let twin = Message("b", 0, 1);
                let unkeyed = |message: Message| Asked { key: None, ..message.asked() };
                for message in [A, twin] {
                    let request = record.asked(vec![unkeyed(message)]);
                    record.stored(request, vec![message.stored()]);
                    deliver(record, &[message]);
                }
            }),
            ("as another than was stored", |record| {
                publish(record, &[A]);
                deliver(record, &[Message("a", 7, 1)]);
            }),
            ("a of key k does not stand behind b", |record| {
                publish(record, &[B]);
                publish(record, &[A]);
                deliver(record, &[A, B]);
            }),
            ("got a after b", |record| {
                publish(record, &[A, B]);
                deliver(record, &[B, A]);
            }),
            ("met several revisions", |record| {
                publish(record, &[A, C]);
                deliver(record, &[A, C]);
            }),
            ("then c 1", |record| {
                publish(record, &[Message("a", 0, 2)]);
                publish(record, &[Message("c", 2, 1)]);
                deliver(record, &[Message("a", 0, 2), Message("c", 2, 1)]);
            }),
            ("revision 1 stamped differently", |record| {
                publish(record, &[A]);
                record.delivered("g", 0, vec![Delivered { stamp: "another".to_owned(), ..A.delivered() }]);
                publish(record, &[B]);
                deliver(record, &[B]);
            }),
            ("revision 1 stamped differently", |record| {
                record.in_force(Way::In, 1, "what was set");
                publish(record, &[A]);
                deliver(record, &[A]);
            }),
            ("no message met it", |record| record.in_force(Way::In, 3, "stamp 3")),
            ("met revision 1 when 2 was in force", |record| {
                publish(record, &[C]);
                record.in_force(Way::In, 2, "stamp 2");
                // In another partition, where nothing has met the second revision yet.
                let request = record.asked(vec![Asked { key: None, ..A.asked() }]);
                record.stored(request, vec![Stored { partition: 1, ..A.stored() }]);
                deliver(record, &[C]);
                record.delivered("g", 0, vec![Delivered { partition: 1, ..A.delivered() }]);
            }),
            ("met revision 1 when 2 was in force", |record| {
                record.known(2);
                publish(record, &[A]);
                deliver(record, &[A]);
            }),
            ("out of turn", |record| {
                record.in_force(Way::Out, 1, "out 1");
                record.in_force(Way::Out, 2, "out 2");
                publish(record, &[A, B]);
                deliver_out(record, A, "out 2");
                deliver_out(record, B, "out 1");
            }),
            ("out of turn", |record| {
                publish(record, &[A]);
                deliver_out(record, A, "nobody's");
            }),
        ];
        for (expected, story) in stories {
            let found = violations(story);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }
}
