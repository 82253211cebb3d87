//! Accepts only JSON objects for structs: serde also accepts an array of the fields.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` from a JSON object alone.
pub(super) struct Strict<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Strict<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object(PhantomData))
    }
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = Strict<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Strict)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point<'a> {
        x: u8,
        name: Option<&'a str>,
    }

    #[test]
    fn an_object_is_taken_and_an_array_of_its_fields_is_not() {
        let Strict(Point { x, name }) = serde_json::from_str(r#"{"name":"a","x":1}"#).unwrap();
        assert_eq!((x, name), (1, Some("a")));
        for bad in ["[1,null]", "[]", "1", "null", r#"{"x":1,"y":2}"#, "{}"] {
            assert!(serde_json::from_str::<Strict<Point<'_>>>(bad).is_err(), "{bad}");
        }
        let error = serde_json::from_str::<Strict<Point<'_>>>("[1,null]").err().unwrap();
        assert!(error.to_string().contains("expected an object"), "{error}");
    }
}
