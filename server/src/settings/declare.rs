//! The macro behind the [table](super::table): what one entry becomes.
//!
//! An entry is its documentation, a variant of [`Setting`](super::Setting), a name, a type and a
//! [kind](super::kind), then a default, and what else applies:
//!
//! ```text
//! /// One line for `--help`.
//! ///
//! /// More for rustdoc and the README. Refer to other settings by their names in backticks.
//! Variant, name: Type as Kind,
//!     default "20s",                    // or: required "what for", or: unset "what that means"
//!     command "1s",                     // the default of `driftless serve`, if it has its own
//!     min "100ms": "why not less",      // checked, documented and shown when refused
//!     max "1h": "why not more",
//!     takes path: impl Into<PathBuf> => Some(path.into());   // or, for lists: adds …
//! ```
//!
//! Everything after the default is optional. Without `takes` or `adds` the builder's method takes the
//! type itself and [`Settings`](super::Settings) gets a method of the same name that returns it, so
//! the type must be `Copy`. With either, the getter is written by hand, in `settings.rs`.
//!
//! The macro makes: the variants of `Setting` and their [`Declaration`]s, from which names, flags,
//! variables, help and the README's table follow; `Values`, which holds, reads and checks the values;
//! the methods of `SettingsBuilder`; the getters of `Settings`.

/// What the table says about one setting.
#[derive(Debug)]
pub(super) struct Declaration {
    /// As a settings file spells it.
    pub(super) name: &'static str,
    /// The lines of its documentation. The first paragraph is a summary.
    pub(super) docs: &'static [&'static str],
    /// What it takes, as `--help` shows it.
    pub(super) placeholder: &'static str,
    /// Whether it takes several values.
    pub(super) is_list: bool,
    pub(super) default: Fallback,
    /// The default of `driftless serve`, where that is another.
    pub(super) command_default: Option<&'static str>,
    pub(super) min: Option<Bound>,
    pub(super) max: Option<Bound>,
}

/// What holds when a setting is not given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fallback {
    /// This value, as a flag would give it.
    Value(&'static str),
    /// Nothing works: it is needed for this.
    Required(&'static str),
    /// The empty value, which means this.
    Unset(&'static str),
}

/// A value that a setting must not be below or above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    /// The bound, as a flag would give it.
    pub(super) value: &'static str,
    /// Why there is a bound.
    pub(super) reason: &'static str,
}

macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $variant:ident, $name:ident: $type:ty as $kind:ty,
            $rule:ident $default:literal
            $(, command $command:literal)?
            $(, min $min:literal: $below:literal)?
            $(, max $max:literal: $above:literal)?
            $(, takes $taken:ident: $taken_type:ty => $take:expr)?
            $(, adds $added:ident: $added_type:ty => $add:expr)?
        ;
    )+) => {
        /// The name of a setting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Setting {
            $($(#[doc = $doc])+ $variant,)+
        }

        /// How many settings there are.
        pub(super) const COUNT: usize = [$(stringify!($name)),+].len();

        impl Setting {
            /// All of them, in the order of the documentation.
            pub const ALL: [Self; COUNT] = [$(Self::$variant),+];

            pub(super) const fn declaration(self) -> &'static Declaration {
                match self {
                    $(Self::$variant => &Declaration {
                        name: stringify!($name),
                        docs: &[$($doc),+],
                        placeholder: <$kind as Kind>::PLACEHOLDER,
                        is_list: <$kind as Kind>::IS_LIST,
                        default: settings!(@default $rule $default),
                        command_default: settings!(@option $($command)?),
                        min: settings!(@bound $($min $below)?),
                        max: settings!(@bound $($max $above)?),
                    },)+
                }
            }
        }

        /// One value for each setting.
        #[derive(Clone, Debug)]
        pub(super) struct Values {
            $(pub(super) $name: $type,)+
        }

        impl Values {
            /// # Panics
            /// When a default in the table cannot be read. A test reads them.
            pub(super) fn defaults() -> Self {
                Self { $($name: settings!(@initial $rule $default, $kind),)+ }
            }

            /// Replaces one value. `texts` are what was given, and not empty.
            pub(super) fn read(&mut self, setting: Setting, texts: &[String]) -> Result<(), String> {
                match setting {
                    $(Setting::$variant => self.$name = <$kind as Kind>::read_all(texts)?,)+
                }
                Ok(())
            }

            /// The first setting that is out of its bounds, and what to say about it.
            pub(super) fn check_bounds(&self) -> Result<(), (Setting, String)> {
                $(
                    $(at_least::<$kind>(&self.$name, Bound { value: $min, reason: $below })
                        .map_err(|problem| (Setting::$variant, problem))?;)?
                    $(at_most::<$kind>(&self.$name, Bound { value: $max, reason: $above })
                        .map_err(|problem| (Setting::$variant, problem))?;)?
                )+
                Ok(())
            }
        }

        impl SettingsBuilder {
            $(settings!(@setter {
                $(#[doc = $doc])+
                #[doc = ""]
                #[doc = settings!(@default_doc $rule $default)]
                $(#[doc = concat!(" (`driftless serve`: `", $command, "`.)")])?
                $(#[doc = concat!(" At least `", $min, "`: ", $below, ".")])?
                $(#[doc = concat!(" At most `", $max, "`: ", $above, ".")])?
            } $variant $name $type
                $(, takes $taken: $taken_type => $take)?
                $(, adds $added: $added_type => $add)?);)+
        }

        impl Settings {
            $(settings!(@getter { $(#[doc = $doc])+ } $name $type $(, takes $taken)? $(, adds $added)?);)+
        }
    };

    // The builder's method: for the type itself, for what is turned into it, for one more of a list.
    (@setter { $(#[$docs:meta])+ } $variant:ident $name:ident $type:ty) => {
        $(#[$docs])+
        pub fn $name(mut self, value: $type) -> Self {
            self.values.$name = value;
            self.set_origin(Setting::$variant, Origin::Code);
            self
        }
    };
    (@setter { $(#[$docs:meta])+ } $variant:ident $name:ident $type:ty,
        takes $value:ident: $value_type:ty => $take:expr) => {
        $(#[$docs])+
        pub fn $name(mut self, $value: $value_type) -> Self {
            self.values.$name = $take;
            self.set_origin(Setting::$variant, Origin::Code);
            self
        }
    };
    (@setter { $(#[$docs:meta])+ } $variant:ident $name:ident $type:ty,
        adds $value:ident: $value_type:ty => $add:expr) => {
        $(#[$docs])+
        ///
        /// Each call adds one.
        pub fn $name(mut self, $value: $value_type) -> Self {
            self.values.$name.push($add);
            self.set_origin(Setting::$variant, Origin::Code);
            self
        }
    };

    (@getter { $(#[$docs:meta])+ } $name:ident $type:ty) => {
        $(#[$docs])+
        pub const fn $name(&self) -> $type {
            self.values.$name
        }
    };
    (@getter { $(#[$docs:meta])+ } $name:ident $type:ty, $by_hand:ident $value:ident) => {};

    (@default default $value:literal) => { Fallback::Value($value) };
    (@default required $what:literal) => { Fallback::Required($what) };
    (@default unset $meaning:literal) => { Fallback::Unset($meaning) };
    (@default_doc default $value:literal) => { concat!("Default: `", $value, "`.") };
    (@default_doc required $what:literal) => { "Required." };
    (@default_doc unset $meaning:literal) => { concat!("Default: ", $meaning, ".") };
    (@initial default $value:literal, $kind:ty) => {
        <$kind as Kind>::read($value).expect("the table's default can be read")
    };
    (@initial $rule:ident $text:literal, $kind:ty) => {
        <<$kind as Kind>::Value as Default>::default()
    };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
    (@bound) => { None };
    (@bound $value:literal $reason:literal) => { Some(Bound { value: $value, reason: $reason }) };
}

pub(super) use settings;
