//! `with_…` methods of option structs.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

/// Writes the methods `with_…` of a struct of options that other crates cannot write as a literal, because fields may be added. The type
/// is that of the field, or after `Some` that of its content.
macro_rules! with_methods {
    ($struct:ident: $($method:ident($field:ident: $($type:tt)+);)+) => {
        impl $struct {
            $($crate::options::with_method! { $method($field: $($type)+) })+
        }
    };
}

macro_rules! with_method {
    ($method:ident($field:ident: Some<$type:ty>)) => {
        #[doc = concat!("Sets [`Self::", stringify!($field), "`].")]
        #[must_use]
        pub fn $method(mut self, $field: $type) -> Self {
            self.$field = Some($field);
            self
        }
    };
    ($method:ident($field:ident: $type:ty)) => {
        #[doc = concat!("Sets [`Self::", stringify!($field), "`].")]
        #[must_use]
        pub fn $method(mut self, $field: $type) -> Self {
            self.$field = $field;
            self
        }
    };
}

pub(crate) use {with_method, with_methods};
