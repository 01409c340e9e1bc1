//! How numbers that may be infinite or NaN stand in files: JSON has none of these.
//!
//! ```text
//! finite             the number
//! infinite or NaN    "inf", "-inf", "NaN"     words that Rust's `parse` and Python's `float` read
//! ```
//!
//! For fields, by `serde(with = "..")`. Formats that are not for people's eyes hold every number as it is.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
    if x.is_finite() || !to.is_human_readable() { to.serialize_f64(*x) } else { to.collect_str(x) }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    if from.is_human_readable() { from.deserialize_any(Any) } else { f64::deserialize(from) }
}

struct Any;

impl Visitor<'_> for Any {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a number, "inf", "-inf" or "NaN""#)
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<f64, E> {
        Ok(x)
    }

    fn visit_u64<E: Error>(self, x: u64) -> Result<f64, E> {
        Ok(x as f64)
    }

    fn visit_i64<E: Error>(self, x: i64) -> Result<f64, E> {
        Ok(x as f64)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<f64, E> {
        match word {
            "inf" => Ok(f64::INFINITY),
            "-inf" => Ok(f64::NEG_INFINITY),
            "NaN" => Ok(f64::NAN),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }
}

/// The same for a number that may be missing.
pub(crate) mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Number(#[serde(with = "super")] f64);

    pub(crate) fn serialize<S: Serializer>(x: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        x.map(Number).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<Number>::deserialize(from)?.map(|Number(x)| x))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Numbers {
        #[serde(with = "super")]
        x: f64,
        #[serde(with = "super::option", default)]
        maybe: Option<f64>,
    }

    #[test]
    fn every_number_comes_back_and_finite_ones_are_numbers() {
        for (x, text) in [
            (1.5, "1.5"),
            (-3.0, "-3.0"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::INFINITY, r#""inf""#),
            (f64::NEG_INFINITY, r#""-inf""#),
            (f64::NAN, r#""NaN""#),
        ] {
            let json = serde_json::to_string(&Numbers { x, maybe: Some(x) }).unwrap();
            assert_eq!(json, format!(r#"{{"x":{text},"maybe":{text}}}"#));
            let back = serde_json::from_str::<Numbers>(&json).unwrap();
            assert!(back.x.total_cmp(&x).is_eq() && back.maybe.unwrap().total_cmp(&x).is_eq(), "{json}");
        }
    }

    #[test]
    fn a_missing_number_is_none_and_other_words_are_refused() {
        for json in [r#"{"x":7}"#, r#"{"x":7,"maybe":null}"#] {
            let back = serde_json::from_str::<Numbers>(json).unwrap();
            assert_eq!((back.x, back.maybe), (7.0, None));
        }
        let error = serde_json::from_str::<Numbers>(r#"{"x":"loud"}"#).err().unwrap().to_string();
        let both = r#"invalid value: string "loud", expected a number, "inf", "-inf" or "NaN""#;
        assert!(error.starts_with(both), "{error}");
    }
}
