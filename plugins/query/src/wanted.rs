//! The parts of a payload that a query looks at, read without building the others.
//! Invariant: a query finds in what is read here what it would find in the whole payload. What is passed over need only
//! have the form of JSON.

use std::fmt;

use serde::de::{Deserialize as _, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::ast::{From, Logical, Operand, Path, Segment, Selector};

/// What is wanted of a value.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    All,
    /// If it is an object, these members; otherwise nothing but that it is none.
    Members(Vec<(String, Wanted)>),
}

impl Wanted {
    /// By a condition on the payload.
    pub(crate) fn by(condition: &Logical) -> Wanted {
        let mut payload = Wanted::Members(Vec::new());
        payload.add(condition);
        payload
    }

    fn add(&mut self, condition: &Logical) {
        match condition {
            Logical::Any(conditions) | Logical::All(conditions) => {
                conditions.iter().for_each(|condition| self.add(condition));
            }
            Logical::Not(condition) => self.add(condition),
            Logical::Exists(path) => self.add_path(path),
            Logical::Matches(operand, _) => self.add_operand(operand),
            Logical::Compare(left, _, right) | Logical::Contains(left, right) => {
                self.add_operand(left);
                self.add_operand(right);
            }
        }
    }

    fn add_operand(&mut self, operand: &Operand) {
        match operand {
            Operand::Literal(_) => {}
            Operand::At(path) | Operand::Count(path) | Operand::Only(path) => self.add_path(path),
            Operand::Length(of) => self.add_operand(of),
        }
    }

    fn add_path(&mut self, path: &Path) {
        // `@` is a value inside of what the path around it leads to, which is wanted as a whole.
        if path.from == From::Payload {
            self.follow(&path.segments);
        }
        for selector in path.segments.iter().flat_map(|segment| &segment.selectors) {
            if let Selector::Filter(condition) = selector {
                self.add(condition);
            }
        }
    }

    fn follow(&mut self, segments: &[Segment]) {
        let Some((Segment { descend, selectors }, rest)) = segments.split_first() else {
            *self = Wanted::All;
            return;
        };
        for selector in selectors {
            match (self.members(), selector) {
                (None, _) => return,
                (Some(members), Selector::Name(name)) if !descend => {
                    let known = members.iter().position(|(known, _)| known == name);
                    let at = known.unwrap_or_else(|| {
                        members.push((name.clone(), Wanted::Members(Vec::new())));
                        members.len() - 1
                    });
                    members[at].1.follow(rest);
                }
                (Some(_), _) => *self = Wanted::All,
            }
        }
    }

    fn members(&mut self) -> Option<&mut Vec<(String, Wanted)>> {
        match self {
            Wanted::All => None,
            Wanted::Members(members) => Some(members),
        }
    }
}

impl<'de> DeserializeSeed<'de> for &Wanted {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
        match self {
            Wanted::All => Value::deserialize(value),
            Wanted::Members(members) => value.deserialize_any(Members(members)),
        }
    }
}

struct Members<'w>(&'w [(String, Wanted)]);

/// What stands for a value that is no object.
const NO_OBJECT: Value = Value::Null;

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(NO_OBJECT)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(NO_OBJECT)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(NO_OBJECT)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(NO_OBJECT)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Value, E> {
        Ok(NO_OBJECT)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(NO_OBJECT)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(NO_OBJECT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(wanted) = members.next_key_seed(Name(self.0))? {
            match wanted {
                // Of two members of one name the last one counts, as where a whole payload is read.
                Some((name, wanted)) => {
                    let value = members.next_value_seed(wanted)?;
                    object.insert(name.clone(), value);
                }
                None => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(object))
    }
}

/// A member's name: which of the wanted ones it is.
struct Name<'w>(&'w [(String, Wanted)]);

impl<'de, 'w> DeserializeSeed<'de> for Name<'w> {
    type Value = Option<&'w (String, Wanted)>;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_str(self)
    }
}

impl<'w> Visitor<'_> for Name<'w> {
    type Value = Option<&'w (String, Wanted)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(known, _)| known == name))
    }
}
