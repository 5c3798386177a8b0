//! The byte that a record begins with.

/// Makes the enum of the tags of a family, with the byte of each.
macro_rules! tags {
    ($(#[$doc:meta])* $name:ident { $($tag:ident = $byte:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        enum $name {
            $($tag),*
        }

        impl $name {
            fn byte(self) -> u8 {
                match self {
                    $(Self::$tag => $byte),*
                }
            }

            fn of(byte: u8) -> Option<Self> {
                match byte {
                    $($byte => Some(Self::$tag),)*
                    _ => None,
                }
            }
        }
    };
}
pub(super) use tags;
