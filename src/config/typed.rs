//! The deserializer of [`Tree`], and its error messages.
//!
//! It knows no setting by name. What serde reports about a value is dropped: it may be a secret.

use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::tagged::TAGGED;
use super::tree::{Error, Table, Tree};

/// Calls the visitor with the parsed text, or fails with what was expected.
macro_rules! parse_text {
    ($($method:ident, $visit:ident, $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self {
                Tree::Text(text) => match text.trim().parse::<$type>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(Error::invalid_type(Unexpected::Str(""), &visitor)),
                },
                other => other.deserialize_any(visitor),
            }
        }
    )*};
}

/// The error for a table in place of a list.
const EXPECTED_LIST: &str = "expected a list: of values in [brackets], of tables each under \
    [[double brackets]]; in the environment with commas, or a number after the name";

impl<'de> Deserializer<'de> for Tree {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Table(table) => {
                visitor.visit_map(Entries { rest: table.into_iter(), next: None })
            }
            Self::List(items) => visitor.visit_seq(Items(items.into_iter().enumerate())),
            Self::Typed(toml::Value::Boolean(value)) => visitor.visit_bool(value),
            Self::Typed(toml::Value::Integer(value)) => visitor.visit_i64(value),
            Self::Typed(toml::Value::Float(value)) => visitor.visit_f64(value),
            Self::Typed(toml::Value::String(text)) | Self::Text(text) => visitor.visit_string(text),
            Self::Typed(_) => Err(Error::invalid_type(Unexpected::Other("date"), &visitor)),
        }
    }

    parse_text! {
        deserialize_bool, visit_bool, bool;
        deserialize_i8, visit_i64, i64;
        deserialize_i16, visit_i64, i64;
        deserialize_i32, visit_i64, i64;
        deserialize_i64, visit_i64, i64;
        deserialize_u8, visit_u64, u64;
        deserialize_u16, visit_u64, u64;
        deserialize_u32, visit_u64, u64;
        deserialize_u64, visit_u64, u64;
        deserialize_f32, visit_f64, f64;
        deserialize_f64, visit_f64, f64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// Text is a TOML array, or items separated by commas.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = match self {
            Self::Text(text) => text,
            Self::Table(_) => return Err(Error::new(EXPECTED_LIST)),
            other => return other.deserialize_any(visitor),
        };
        let items = if text.trim_start().starts_with('[') {
            toml::from_str::<toml::Table>(&format!("items = {text}"))
                .ok()
                .and_then(|mut table| table.remove("items"))
                .ok_or_else(|| Error::new("not a TOML array"))?
                .into()
        } else {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Self::List(items.map(|item| Self::Text(item.to_owned())).collect())
        };
        items.deserialize_any(visitor)
    }

    /// A choice of words, or of tables, which is selected by the key `kind`.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Self::Table(table) if name == TAGGED => Kind::visit(table, visitor),
            _ if name == TAGGED => Err(Error::new("expected a table")),
            Self::Typed(toml::Value::String(text)) | Self::Text(text) => {
                visitor.visit_enum(text.into_deserializer())
            }
            other => other.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct
        identifier ignored_any
    }
}

/// A table without its `kind`.
struct Kind {
    kind: String,
    table: Table,
}

impl Kind {
    fn visit<'de, V: Visitor<'de>>(mut table: Table, visitor: V) -> Result<V::Value, Error> {
        match table.remove(TAGGED) {
            Some(Tree::Typed(toml::Value::String(kind)) | Tree::Text(kind)) => {
                visitor.visit_enum(Self { kind, table })
            }
            Some(_) => Err(Error::new("expected a word").within(TAGGED)),
            None => Err(Error::missing_field(TAGGED)),
        }
    }
}

impl<'de> EnumAccess<'de> for Kind {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let kind: StrDeserializer<'_, Error> = self.kind.as_str().into_deserializer();
        let variant = seed.deserialize(kind).map_err(|error| error.within(TAGGED))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Kind {
    type Error = Error;

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Tree::Table(self.table)).map_err(|error| error.with_known(TAGGED))
    }

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        Tree::Table(self.table).deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        Tree::Table(self.table).deserialize_any(visitor)
    }
}

/// Deserializes a setting; its errors are located at `key`.
fn typed<'de, T: DeserializeSeed<'de>>(seed: T, value: Tree, key: &str) -> Result<T::Value, Error> {
    seed.deserialize(value).map_err(|error| error.within(key))
}

/// The entries of a table; errors name their keys.
struct Entries {
    rest: std::collections::btree_map::IntoIter<String, Tree>,
    next: Option<(String, Tree)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next = self.rest.next();
        let Some((key, _)) = &self.next else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, value) = self.next.take().ok_or_else(|| Error::new("a value without a key"))?;
        typed(seed, value, &key)
    }
}

/// The items of a list; errors name their index.
struct Items(std::iter::Enumerate<std::vec::IntoIter<Tree>>);

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, item)) = self.0.next() else { return Ok(None) };
        typed(seed, item, &index.to_string()).map(Some)
    }
}

/// Names are not resolved: this is an address to listen on.
const EXPECTED_ADDRESS: &str = "expected an IP address and a port, such as 127.0.0.1:8080";

impl serde::de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        match message.to_string() {
            // The standard library's message for a wrong address.
            text if text.starts_with("invalid socket address") => Self::new(EXPECTED_ADDRESS),
            text => Self::new(text),
        }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(match &*expected.to_string() {
            "usize" | "u8" | "u16" | "u32" | "u64" => "expected a whole number".to_owned(),
            "f32" | "f64" => "expected a number".to_owned(),
            "socket address" => EXPECTED_ADDRESS.to_owned(),
            "path string" => "expected a path".to_owned(),
            table if table.starts_with("struct ") => "expected a table".to_owned(),
            list if list.starts_with("a sequence") => "expected a list".to_owned(),
            other => format!("expected {other}"),
        })
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(Unexpected::Unit, expected)
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected {}", expected.join(" or ")))
    }

    fn unknown_field(key: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown(key, expected)
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new("it is missing").within(key)
    }
}
