//! The kinds of target that are read from text, listed once.

/// Calls the macro `$with` with every `deserialize` method of a type that is read from text, and the type's
/// name in errors.
macro_rules! scalars {
    ($with:ident) => {
        $with! {
            deserialize_bool "a boolean (true or false)",
            deserialize_i8 "an integer (i8)",
            deserialize_i16 "an integer (i16)",
            deserialize_i32 "an integer (i32)",
            deserialize_i64 "an integer (i64)",
            deserialize_i128 "an integer (i128)",
            deserialize_u8 "an integer (u8)",
            deserialize_u16 "an integer (u16)",
            deserialize_u32 "an integer (u32)",
            deserialize_u64 "an integer (u64)",
            deserialize_u128 "an integer (u128)",
            deserialize_f32 "a number (f32)",
            deserialize_f64 "a number (f64)",
            deserialize_char "a character",
            deserialize_str "a string",
            deserialize_string "a string",
            deserialize_identifier "a name",
        }
    };
}
