//! Values of type jsonb, kept and handed on as the server has them.
//!
//! Not as serde_json's: jsonb holds numbers that it does not (`1e400`), and digits that it drops.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use pgrx::{direct_function_call, direct_function_call_as_datum};

/// A jsonb that lives longer than the statement that it came with.
///
/// In words of eight bytes, because the server reads the inside of a jsonb by words.
pub struct Json(Box<[u64]>);

impl Json {
    /// A copy of a datum.
    ///
    /// # Safety
    ///
    /// `datum` is a jsonb, toasted or not.
    pub unsafe fn copy(datum: pg_sys::Datum) -> Json {
        // SAFETY: what detoasting answers is whole, with a length word of four bytes.
        unsafe {
            let plain = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
            let length = pgrx::varlena::varsize_4b(plain);
            let mut words = vec![0u64; length.div_ceil(8)].into_boxed_slice();
            std::ptr::copy_nonoverlapping(plain.cast::<u8>(), words.as_mut_ptr().cast::<u8>(), length);
            if plain.cast() != datum.cast_mut_ptr::<pg_sys::varlena>() {
                pg_sys::pfree(plain.cast());
            }
            Json(words)
        }
    }

    /// The value, for as long as this one lives.
    pub fn datum(&self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.0.as_ptr())
    }

    /// A copy of the value in the current memory context.
    pub fn to_server(&self) -> pg_sys::Datum {
        // SAFETY: the words hold a whole varlena.
        unsafe {
            let length = pgrx::varlena::varsize_4b(self.0.as_ptr().cast());
            let copy = pg_sys::palloc(length).cast::<u8>();
            std::ptr::copy_nonoverlapping(self.0.as_ptr().cast::<u8>(), copy, length);
            pg_sys::Datum::from(copy)
        }
    }

    /// Its text, as the server prints it.
    pub fn text(&self) -> String {
        text(self.datum())
    }

    /// The value of a key of an object, in the current memory context.
    pub fn field(&self, key: &str) -> Option<pg_sys::Datum> {
        use pgrx::IntoDatum;
        // SAFETY: a jsonb and a text; of another kind than an object it answers NULL.
        unsafe {
            direct_function_call_as_datum(pg_sys::jsonb_object_field, &[Some(self.datum()), key.into_datum()])
        }
    }

    /// Bytes of memory.
    pub fn size(&self) -> usize {
        self.0.len() * 8
    }
}

/// The text of a jsonb.
pub fn text(datum: pg_sys::Datum) -> String {
    // SAFETY: a jsonb; its text is a string of the current memory context, copied here.
    let text = unsafe { direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(datum)]) };
    text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A jsonb of that text, in the current memory context. Raises 22P02 for text that is no JSON.
pub fn parse(text: &str) -> pg_sys::Datum {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: a string with a terminating zero, which is only read.
    unsafe { direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))]) }
        .unwrap_or(pg_sys::Datum::null())
}

/// The text of an object with the keys of both; the second wins. What is no object has none.
pub fn merge(first: &str, second: &Json) -> String {
    if !second.text().starts_with('{') {
        return first.into();
    }
    // SAFETY: two objects, which the server puts together.
    let merged = unsafe {
        direct_function_call_as_datum(pg_sys::jsonb_concat, &[Some(parse(first)), Some(second.datum())])
    };
    merged.map(text).unwrap_or_default()
}

/// The text of an object, made key by key.
pub struct Object(String);

impl Object {
    /// Without a key.
    pub fn new() -> Object {
        Object("{".into())
    }

    /// Adds a key; `value` is the text of a JSON value.
    pub fn push(&mut self, key: &str, value: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0 += &quote(key);
        self.0.push(':');
        self.0 += value;
    }

    /// The text of the object.
    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A JSON string.
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A JSON string, or null.
pub fn quote_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".into(), quote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fuzz_an_object_holds_its_keys_and_values(
            fields in proptest::collection::btree_map("\\PC{0,12}|[\\x00-\\x1f\"'\\\\/]{1,4}", "\\PC{0,12}|[\\x00-\\x1f\"\\\\]{0,4}", 0..5),
        ) {
            let mut object = Object::new();
            for (key, value) in &fields {
                object.push(key, &quote(value));
            }
            let expected = fields.into_iter().map(|(key, value)| (key, value.into())).collect();
            let read = serde_json::from_str::<serde_json::Value>(&object.finish()).ok();
            prop_assert_eq!(read, Some(serde_json::Value::Object(expected)));
        }
    }
}
