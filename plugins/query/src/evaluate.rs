//! Evaluating a condition on a payload.
//! Invariant: every value looked at is paid for in steps, so evaluation ends. Never copies a part of the payload,
//! and stops at the first value that settles the answer.

use std::{borrow::Cow, cell::Cell};

use serde_json::Value;

use crate::{
    EVALUATION_STEPS_MAX, TooCostly,
    ast::{From, Logical, Operand, Path, Segment, Selector},
    compare,
};

/// What is left to spend.
pub(crate) struct Steps(Cell<u32>);

impl Steps {
    pub(crate) fn take(&self, steps: u32) -> Result<(), TooCostly> {
        let left = self.0.get().checked_sub(steps).ok_or(TooCostly)?;
        self.0.set(left);
        Ok(())
    }

    /// Pays for looking through text: comparing or searching 32 bytes takes about as long as visiting a value.
    pub(crate) fn take_text(&self, bytes: usize) -> Result<(), TooCostly> {
        self.take(u32::try_from(bytes / 32).unwrap_or(u32::MAX))
    }
}

pub(crate) struct Evaluation<'v> {
    payload: &'v Value,
    steps: Steps,
}

/// Told of each value that a path leads to; says whether to go on.
type Found<'f, 'v> = &'f mut dyn FnMut(&'v Value) -> bool;

impl<'v> Evaluation<'v> {
    pub(crate) fn new(payload: &'v Value) -> Self {
        Self { payload, steps: Steps(Cell::new(EVALUATION_STEPS_MAX)) }
    }

    pub(crate) fn holds(&self, condition: &Logical, current: &'v Value) -> Result<bool, TooCostly> {
        self.steps.take(1)?;
        match condition {
            Logical::Any(conditions) => {
                for condition in conditions {
                    if self.holds(condition, current)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Logical::All(conditions) => {
                for condition in conditions {
                    if !self.holds(condition, current)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Logical::Not(condition) => Ok(!self.holds(condition, current)?),
            Logical::Exists(path) => Ok(self.first(path, 1, current)?.0 == 1),
            Logical::Compare(left, comparison, right) => {
                let (left, right) = (self.operand(left, current)?, self.operand(right, current)?);
                compare::holds(&self.steps, left.as_deref(), *comparison, right.as_deref())
            }
            Logical::Matches(text, pattern) => match self.operand(text, current)?.as_deref() {
                Some(Value::String(text)) => {
                    // A pattern looks at each byte, and at worst at each once per state.
                    self.steps.take_text(text.len().saturating_mul(32))?;
                    Ok(pattern.is_match(text))
                }
                _ => Ok(false),
            },
            Logical::Contains(whole, part) => {
                match (self.operand(whole, current)?.as_deref(), self.operand(part, current)?.as_deref()) {
                    (Some(whole), Some(part)) => self.contains(whole, part),
                    _ => Ok(false),
                }
            }
        }
    }

    /// A string contains a string; an array contains an element that is equal.
    fn contains(&self, whole: &Value, part: &Value) -> Result<bool, TooCostly> {
        match (whole, part) {
            (Value::String(whole), Value::String(part)) => {
                self.steps.take_text(whole.len())?;
                Ok(whole.contains(part.as_str()))
            }
            (Value::Array(elements), part) => {
                for element in elements {
                    if compare::equal(&self.steps, element, part)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn operand<'o>(&self, operand: &'o Operand, current: &'v Value) -> Result<Option<Cow<'o, Value>>, TooCostly>
    where
        'v: 'o,
    {
        Ok(match operand {
            Operand::Literal(value) => Some(Cow::Borrowed(value)),
            Operand::At(path) => self.first(path, 1, current)?.1.map(Cow::Borrowed),
            Operand::Only(path) => match self.first(path, 2, current)? {
                (1, value) => value.map(Cow::Borrowed),
                _ => None,
            },
            Operand::Count(path) => Some(Cow::Owned(Value::from(self.first(path, usize::MAX, current)?.0))),
            Operand::Length(of) => {
                let length = match self.operand(of, current)?.as_deref() {
                    Some(Value::String(text)) => {
                        self.steps.take_text(text.len())?;
                        Some(text.chars().count())
                    }
                    Some(Value::Array(elements)) => Some(elements.len()),
                    Some(Value::Object(members)) => Some(members.len()),
                    _ => None,
                };
                length.map(|length| Cow::Owned(Value::from(length)))
            }
        })
    }

    /// How many values a path leads to, counted up to `enough`, and the first of them.
    fn first(&self, path: &Path, enough: usize, current: &'v Value) -> Result<(usize, Option<&'v Value>), TooCostly> {
        let from = match path.from {
            From::Payload => self.payload,
            From::Current => current,
        };
        let (mut count, mut first) = (0, None);
        self.walk(&path.segments, from, &mut |value| {
            count += 1;
            first.get_or_insert(value);
            count < enough
        })?;
        Ok((count, first))
    }

    /// Follows segments from a value; false when `found` has seen enough.
    fn walk(&self, segments: &[Segment], value: &'v Value, found: Found<'_, 'v>) -> Result<bool, TooCostly> {
        self.steps.take(1)?;
        let Some((segment, rest)) = segments.split_first() else { return Ok(found(value)) };
        for selector in &segment.selectors {
            if !self.select(selector, rest, value, found)? {
                return Ok(false);
            }
        }
        if segment.descend {
            for child in children(value) {
                if !self.walk(segments, child, found)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn select(
        &self,
        selector: &Selector,
        rest: &[Segment],
        value: &'v Value,
        found: Found<'_, 'v>,
    ) -> Result<bool, TooCostly> {
        match (selector, value) {
            (Selector::Name(name), Value::Object(members)) => match members.get(name) {
                Some(member) => self.walk(rest, member, found),
                None => Ok(true),
            },
            (Selector::Index(index), Value::Array(elements)) => match element(elements, *index) {
                Some(element) => self.walk(rest, element, found),
                None => Ok(true),
            },
            (Selector::Slice { start, end, step }, Value::Array(elements)) => {
                self.slice(elements, (*start, *end, *step), rest, found)
            }
            (Selector::Every, value) => {
                for child in children(value) {
                    if !self.walk(rest, child, found)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Selector::Filter(condition), value) => {
                for child in children(value) {
                    if self.holds(condition, child)? && !self.walk(rest, child, found)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    /// RFC 9535 §2.3.4.2.2.
    fn slice(
        &self,
        elements: &'v [Value],
        (start, end, step): (Option<i64>, Option<i64>, i64),
        rest: &[Segment],
        found: Found<'_, 'v>,
    ) -> Result<bool, TooCostly> {
        let len = i64::try_from(elements.len()).expect("an array's length fits");
        let absolute = |bound: i64| if bound < 0 { bound + len } else { bound };
        let (mut at, stop) = match step {
            0 => return Ok(true),
            1.. => (absolute(start.unwrap_or(0)).clamp(0, len), absolute(end.unwrap_or(len)).clamp(0, len)),
            _ => (
                start.map_or(len - 1, |s| absolute(s).clamp(-1, len - 1)),
                end.map_or(-1, |e| absolute(e).clamp(-1, len - 1)),
            ),
        };
        while if step > 0 { at < stop } else { at > stop } {
            let index = usize::try_from(at).expect("clamped to the array");
            if !self.walk(rest, &elements[index], found)? {
                return Ok(false);
            }
            at = at.saturating_add(step);
        }
        Ok(true)
    }
}

fn children(value: &Value) -> impl Iterator<Item = &Value> {
    let (elements, members) = match value {
        Value::Array(elements) => (Some(elements), None),
        Value::Object(members) => (None, Some(members)),
        _ => (None, None),
    };
    elements.into_iter().flatten().chain(members.into_iter().flat_map(|members| members.values()))
}

/// Negative indices count from the end.
fn element(elements: &[Value], index: i64) -> Option<&Value> {
    let index = match usize::try_from(index.unsigned_abs()) {
        Ok(back) if index < 0 => elements.len().checked_sub(back)?,
        Ok(index) => index,
        Err(_) => return None,
    };
    elements.get(index)
}
