//! Enums of words: the values of a metric's label, and the same words in logs and
//! headers. Enum, list and words come from one declaration, so that no list can lack a variant.

/// Declares an enum with the word of each variant. Variants may have fields; without any, the enum
/// is `Copy` and has `ALL`.
macro_rules! labels {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$doc])* $variant,)+
        }

        #[allow(dead_code, reason = "not every enum needs every list")]
        impl $name {
            /// Every variant, in the order of declaration.
            $vis const ALL: [Self; Self::WORDS.len()] = [$(Self::$variant,)+];
            /// Their words, in the same order.
            $vis const WORDS: [&'static str; [$($word),+].len()] = [$($word),+];

            /// Returns the word, in kebab-case unless it is the name of a setting.
            $vis const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident $(($($of:ty),+))? $({$($field:tt)*})? = $word:literal,)+
    }) => {
        $(#[$meta])*
        $vis enum $name {
            $($(#[$doc])* $variant $(($($of),+))? $({$($field)*})?,)+
        }

        impl $name {
            /// The words of all variants, in the order of declaration.
            $vis const WORDS: [&'static str; [$($word),+].len()] = [$($word),+];

            /// Returns the word.
            $vis const fn as_str(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $word,)+
                }
            }
        }
    };
}

pub(crate) use labels;
