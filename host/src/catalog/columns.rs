//! How values stand in columns: enums by the name that the API gives them, durations as milliseconds, lists as JSON.
//! Invariant: what is written here reads back equal; what cannot have been written is damage, never a default.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::CatalogError;
use crate::clock::Timestamp;

/// An enum's name, as serde writes it.
pub(super) fn name(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("only enums without fields come here, and serde writes those as text: {other:?}"),
    }
}

/// Any value of the model as JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the model's values have text keys, and writing to memory does not fail")
}

/// Milliseconds; what is longer than 292 million years is that long.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// SQL has no unsigned numbers; a bound above the largest signed one is no bound either way.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Reads columns by name.
pub(super) struct Columns<'r>(pub(super) &'r AnyRow);

impl Columns<'_> {
    pub(super) fn text(&self, column: &str) -> Result<String, CatalogError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn text_opt(&self, column: &str) -> Result<Option<String>, CatalogError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn int(&self, column: &str) -> Result<i64, CatalogError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn float(&self, column: &str) -> Result<f64, CatalogError> {
        Ok(self.0.try_get(column)?)
    }

    /// A number that fits the smaller type it was written from.
    pub(super) fn number<N: TryFrom<i64>>(&self, column: &str) -> Result<N, CatalogError> {
        let value = self.int(column)?;
        N::try_from(value).map_err(|_| damaged(column, &value.to_string()))
    }

    pub(super) fn number_opt<N: TryFrom<i64>>(&self, column: &str) -> Result<Option<N>, CatalogError> {
        let value: Option<i64> = self.0.try_get(column)?;
        value.map(|value| N::try_from(value).map_err(|_| damaged(column, &value.to_string()))).transpose()
    }

    pub(super) fn time(&self, column: &str) -> Result<Timestamp, CatalogError> {
        self.int(column).map(Timestamp)
    }

    pub(super) fn time_opt(&self, column: &str) -> Result<Option<Timestamp>, CatalogError> {
        Ok(self.0.try_get::<Option<i64>, _>(column)?.map(Timestamp))
    }

    pub(super) fn duration(&self, column: &str) -> Result<Duration, CatalogError> {
        self.number(column).map(Duration::from_millis)
    }

    /// An enum by its name.
    pub(super) fn named<T: DeserializeOwned>(&self, column: &str) -> Result<T, CatalogError> {
        let text = self.text(column)?;
        serde_json::from_value(serde_json::Value::String(text.clone())).map_err(|_| damaged(column, &text))
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, CatalogError> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|error| damaged(column, &error.to_string()))
    }

    pub(super) fn json_opt<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, CatalogError> {
        let text = self.text_opt(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| damaged(column, &error.to_string()))).transpose()
    }

    /// Whatever is written as text.
    pub(super) fn parsed<T: std::str::FromStr>(&self, column: &str) -> Result<T, CatalogError> {
        let text = self.text(column)?;
        text.parse().map_err(|_| damaged(column, &text))
    }
}

fn damaged(column: &str, what: &str) -> CatalogError {
    CatalogError::Damaged(format!("the column {column} holds what was never written there: {what}"))
}
