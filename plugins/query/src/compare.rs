//! Comparing values as RFC 9535 §2.3.5.2.2 says.
//! Invariant: numbers compare by what they are, integers exactly (ids beyond 2^53 are not equal by rounding).
//! Never orders values of different types: neither is less.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use crate::{TooCostly, ast::Comparison, evaluate::Steps};

/// `None` is RFC 9535's Nothing: a path that leads nowhere.
pub(crate) fn holds(
    steps: &Steps,
    left: Option<&Value>,
    comparison: Comparison,
    right: Option<&Value>,
) -> Result<bool, TooCostly> {
    let equal = || match (left, right) {
        (Some(left), Some(right)) => equal(steps, left, right),
        (left, right) => Ok(left.is_none() && right.is_none()),
    };
    let order = || match (left, right) {
        (Some(left), Some(right)) => order(steps, left, right),
        _ => Ok(None),
    };
    Ok(match comparison {
        Comparison::Equal => equal()?,
        Comparison::NotEqual => !equal()?,
        Comparison::Less => order()? == Some(Ordering::Less),
        Comparison::Greater => order()? == Some(Ordering::Greater),
        Comparison::LessOrEqual => order()? == Some(Ordering::Less) || equal()?,
        Comparison::GreaterOrEqual => order()? == Some(Ordering::Greater) || equal()?,
    })
}

pub(crate) fn equal(steps: &Steps, left: &Value, right: &Value) -> Result<bool, TooCostly> {
    steps.take(1)?;
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(number_order(left, right) == Some(Ordering::Equal)),
        (Value::String(left), Value::String(right)) => {
            steps.take_text(left.len().min(right.len()))?;
            Ok(left == right)
        }
        (Value::Array(left), Value::Array(right)) => {
            let mut same = left.len() == right.len();
            for (left, right) in left.iter().zip(right) {
                same = same && equal(steps, left, right)?;
            }
            Ok(same)
        }
        (Value::Object(left), Value::Object(right)) => {
            let mut same = left.len() == right.len();
            for (name, left) in left {
                same = same && right.get(name).map_or(Ok(false), |right| equal(steps, left, right))?;
            }
            Ok(same)
        }
        (left, right) => Ok(left == right),
    }
}

fn order(steps: &Steps, left: &Value, right: &Value) -> Result<Option<Ordering>, TooCostly> {
    steps.take(1)?;
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(number_order(left, right)),
        (Value::String(left), Value::String(right)) => {
            steps.take_text(left.len().min(right.len()))?;
            // By Unicode scalar values, which is the order of UTF-8's bytes.
            Ok(Some(left.cmp(right)))
        }
        _ => Ok(None),
    }
}

fn number_order(left: &Number, right: &Number) -> Option<Ordering> {
    let integer = |n: &Number| n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (Some(left), None) => integer_order(left, right.as_f64()?),
        (None, Some(right)) => integer_order(right, left.as_f64()?).map(Ordering::reverse),
        (None, None) => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

/// An integer (of 64 bits) against a float, without rounding the integer.
fn integer_order(integer: i128, float: f64) -> Option<Ordering> {
    // Far outside of 64 bits the cast below would saturate, which keeps the order all the same.
    let whole = float.trunc() as i128;
    match integer.cmp(&whole) {
        Ordering::Equal => 0.0.partial_cmp(&float.fract()),
        unequal => Some(unequal),
    }
}
