//! Lists the public futures in Rust sources, so that no test of cancellation forgets one.
//!
//! Sources are parsed, not compiled: types and aliases are found by their last name, and what a macro
//! writes is not seen. A public item in a private module is listed as well.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ReturnType, Signature, TraitItem, Type, Visibility};

/// The traits whose implementations are futures or become one, and the method that does it. A stream
/// is awaited as well.
const TRAITS: [(&str, &str); 3] = [
    ("IntoFuture", "into_future"),
    ("Future", "poll"),
    ("Stream", "poll_next"),
];

/// The heading that the documentation of each must have.
const HEADING: &str = "# Cancel safety";

/// A public future.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// `Type::function`, or `module::item` outside of a type.
    pub(crate) name: String,
    file: PathBuf,
    pub(crate) documents_cancellation: bool,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.file.display())
    }
}

/// All in a folder and the folders in it, except unit tests.
pub(crate) fn public_futures(folder: &Path) -> Vec<Listed> {
    let mut sources = Vec::new();
    read(folder, &mut sources);
    sources.sort();
    assert!(!sources.is_empty(), "{} has no sources", folder.display());
    in_sources(&sources)
}

fn read(folder: &Path, sources: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources.push((path, text));
        }
    }
}

fn in_sources(sources: &[(PathBuf, String)]) -> Vec<Listed> {
    let parsed: Vec<_> = sources
        .iter()
        .map(|(path, text)| {
            let file = syn::parse_file(text);
            let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, file)
        })
        .collect();
    let mut names = Names::default();
    for (_, file) in &parsed {
        names.collect(&file.items);
    }
    let mut found = Vec::new();
    for (path, file) in &parsed {
        let mut list = List {
            names: &names,
            file: path,
            found: &mut found,
        };
        list.items(&module_of(path), &file.items);
    }
    found
}

/// The module that a file is.
fn module_of(file: &Path) -> String {
    let stem = file.file_stem().unwrap();
    let name = match file.parent().and_then(Path::file_name) {
        Some(folder) if stem == "mod" => folder,
        _ => stem,
    };
    name.to_string_lossy().into_owned()
}

/// What other items refer to, by its last name.
#[derive(Default)]
struct Names<'a> {
    aliases: HashMap<String, &'a Type>,
    /// The public types, and whether their documentation has the heading.
    types: HashMap<String, bool>,
}

impl<'a> Names<'a> {
    fn collect(&mut self, items: &'a [Item]) {
        for item in items {
            let (ident, vis, attributes) = match item {
                Item::Mod(module) if !is_test(&module.attrs) => {
                    let inner = module.content.as_ref();
                    self.collect(inner.map_or(&[], |(_, items)| items));
                    continue;
                }
                Item::Type(alias) => {
                    self.aliases.insert(alias.ident.to_string(), &alias.ty);
                    continue;
                }
                Item::Struct(it) => (&it.ident, &it.vis, &it.attrs),
                Item::Enum(it) => (&it.ident, &it.vis, &it.attrs),
                _ => continue,
            };
            if is_public(vis) {
                let documented = documents_cancellation(attributes);
                self.types.insert(ident.to_string(), documented);
            }
        }
    }

    /// Whether whoever has a value of this type can await it, or a part of it.
    fn is_awaited(&self, ty: &Type) -> bool {
        let mut search = Search {
            names: self,
            entered: HashSet::new(),
            found: false,
        };
        search.visit_type(ty);
        search.found
    }
}

/// Looks for one of [`TRAITS`] in a type, and in the aliases that it names.
struct Search<'a> {
    names: &'a Names<'a>,
    /// An alias may have the name of the type that it stands for, as `Result` mostly does.
    entered: HashSet<String>,
    found: bool,
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_trait_bound(&mut self, bound: &'ast syn::TraitBound) {
        self.found |= awaited_trait(&bound.path).is_some();
        visit::visit_trait_bound(self, bound);
    }

    fn visit_type_path(&mut self, path: &'ast syn::TypePath) {
        let name = last_name(&path.path);
        if let Some(alias) = self.names.aliases.get(&name)
            && self.entered.insert(name)
        {
            self.found |= {
                let mut search = Search {
                    names: self.names,
                    entered: self.entered.clone(),
                    found: false,
                };
                search.visit_type(alias);
                search.found
            };
        }
        visit::visit_type_path(self, path);
    }
}

/// The walk over the items of one file.
struct List<'a> {
    names: &'a Names<'a>,
    file: &'a Path,
    found: &'a mut Vec<Listed>,
}

impl List<'_> {
    fn items(&mut self, module: &str, items: &[Item]) {
        for item in items {
            match item {
                Item::Mod(inner) if !is_test(&inner.attrs) => {
                    if let Some((_, items)) = &inner.content {
                        self.items(&inner.ident.to_string(), items);
                    }
                }
                Item::Fn(it) if is_public(&it.vis) && !is_test(&it.attrs) => {
                    self.function(module, &it.sig, &it.attrs);
                }
                Item::Type(it) if is_public(&it.vis) && self.names.is_awaited(&it.ty) => {
                    self.add(module, &it.ident, documents_cancellation(&it.attrs));
                }
                Item::Trait(it) if is_public(&it.vis) => {
                    let of = it.ident.to_string();
                    for item in &it.items {
                        if let TraitItem::Fn(it) = item {
                            self.function(&of, &it.sig, &it.attrs);
                        }
                    }
                }
                Item::Impl(it) if !is_test(&it.attrs) => self.implementation(it),
                _ => {}
            }
        }
    }

    fn implementation(&mut self, block: &syn::ItemImpl) {
        let Type::Path(of) = &*block.self_ty else {
            return;
        };
        let of = last_name(&of.path);
        let functions = block.items.iter().filter_map(|item| match item {
            ImplItem::Fn(it) => Some(it),
            _ => None,
        });
        let Some((_, implemented, _)) = &block.trait_ else {
            for it in functions.filter(|it| is_public(&it.vis) && !is_test(&it.attrs)) {
                self.function(&of, &it.sig, &it.attrs);
            }
            return;
        };
        let Some(method) = awaited_trait(implemented) else {
            return;
        };
        let Some(documented) = self.names.types.get(&of) else {
            return;
        };
        let documented = *documented
            || documents_cancellation(&block.attrs)
            || functions
                .filter(|it| it.sig.ident == method)
                .any(|it| documents_cancellation(&it.attrs));
        self.add(&of, &method, documented);
    }

    fn function(&mut self, of: &str, signature: &Signature, attributes: &[Attribute]) {
        let returns_one = match &signature.output {
            ReturnType::Type(_, ty) => self.names.is_awaited(ty),
            ReturnType::Default => false,
        };
        if signature.asyncness.is_some() || returns_one {
            let documented = documents_cancellation(attributes);
            self.add(of, &signature.ident, documented);
        }
    }

    fn add(&mut self, of: &str, name: &impl fmt::Display, documents_cancellation: bool) {
        self.found.push(Listed {
            name: format!("{of}::{name}"),
            file: self.file.to_owned(),
            documents_cancellation,
        });
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|condition| condition.is_ident("test"))
    })
}

fn documents_cancellation(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::NameValue(meta) = &attribute.meta else {
            return false;
        };
        let syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) = &meta.value
        else {
            return false;
        };
        meta.path.is_ident("doc") && text.value().lines().any(|line| line.trim() == HEADING)
    })
}

fn last_name(path: &syn::Path) -> String {
    let last = path.segments.last();
    last.map(|segment| segment.ident.to_string())
        .unwrap_or_default()
}

/// The method of the trait that makes a future, where it is one of [`TRAITS`].
fn awaited_trait(path: &syn::Path) -> Option<&'static str> {
    let name = last_name(path);
    let found = TRAITS.iter().find(|(known, _)| *known == name);
    found.map(|(_, method)| *method)
}

/// The names that are found in one source, and whether they document cancellation.
fn listed(source: &str) -> Vec<(String, bool)> {
    let sources = [(PathBuf::from("src/module.rs"), source.to_owned())];
    let found = in_sources(&sources).into_iter();
    found
        .map(|found| (found.name, found.documents_cancellation))
        .collect()
}

#[track_caller]
fn assert_listed(source: &str, expected: &[(&str, bool)]) {
    let found = listed(source);
    let found: Vec<_> = found
        .iter()
        .map(|(name, documented)| (name.as_str(), *documented))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn public_async_functions_are_listed() {
    assert_listed(
        "
        pub struct Handle<T>(T);

        impl<T: Fn() -> u32> Handle<T> {
            /// Waits.
            ///
            /// # Cancel safety
            /// Yes.
            pub async fn one(&self) {}

            /// Does not say.
            pub async fn two<F: Fn() -> u32>(&self) -> u32 where F: Send {}

            pub(crate) async fn hidden(&self) {}
            async fn private(&self) {}
            pub fn takes_one(&self, f: impl Future<Output = ()>) -> u32 {}
        }

        pub async fn free() {}
        pub(super) async fn hidden() {}

        pub mod inner { pub async fn nested() {} }
        ",
        &[
            ("Handle::one", true),
            ("Handle::two", false),
            ("module::free", false),
            ("inner::nested", false),
        ],
    );
}

#[test]
fn functions_that_return_futures_are_listed() {
    assert_listed(
        "
        impl Handle {
            pub fn opaque(&self) -> impl std::future::Future<Output = ()> + Send {}
            pub fn boxed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {}
            pub fn maybe(&self) -> Result<Option<impl Stream<Item = u32>>, Error> {}
            pub fn many(&self) -> impl Iterator<Item = impl Future<Output = ()>> {}
            pub fn no_future(&self) -> impl Iterator<Item = u32> {}
        }
        ",
        &[
            ("Handle::opaque", false),
            ("Handle::boxed", false),
            ("Handle::maybe", false),
            ("Handle::many", false),
        ],
    );
}

#[test]
fn aliases_of_futures_are_listed_and_followed() {
    assert_listed(
        "
        type Hidden = Pin<Box<dyn Future<Output = ()> + Send>>;
        type Twice = Option<Hidden>;
        type Result<T> = std::result::Result<T, Error>;
        /// # Cancel safety
        /// Yes.
        pub type Shown = impl Future<Output = ()>;
        pub type Number = u32;

        pub fn hidden() -> Hidden {}
        pub fn twice() -> crate::Twice {}
        pub fn shown() -> Result<Shown> {}
        pub fn number() -> Result<Number> {}
        ",
        &[
            ("module::Shown", true),
            ("module::hidden", false),
            ("module::twice", false),
            ("module::shown", false),
        ],
    );
}

#[test]
fn public_types_that_are_futures_are_listed() {
    assert_listed(
        "
        /// # Cancel safety
        /// Yes.
        #[must_use]
        pub struct Builder;
        pub enum Updates<T> { One(T) }
        pub struct Wait;
        struct Hidden;

        impl IntoFuture for Builder {
            fn into_future(self) -> Self::IntoFuture {}
        }
        impl<T> futures_core::Stream for Updates<T> {
            /// # Cancel safety
            /// Yes.
            fn poll_next(self: Pin<&mut Self>) {}
        }
        impl Future for Wait {
            fn poll(self: Pin<&mut Self>) {}
        }
        impl Future for Hidden {
            fn poll(self: Pin<&mut Self>) {}
        }
        impl Clone for Wait {
            fn clone(&self) -> Self {}
        }
        ",
        &[
            ("Builder::into_future", true),
            ("Updates::poll_next", true),
            ("Wait::poll", false),
        ],
    );
}

#[test]
fn methods_of_public_traits_are_listed() {
    assert_listed(
        "
        pub type Connecting = Pin<Box<dyn Future<Output = ()>>>;
        pub trait Connect {
            /// # Cancel safety
            /// Yes.
            fn connect(&self) -> Connecting;
            async fn close(&self);
            fn name(&self) -> String;
        }
        trait Hidden { async fn hidden(&self); }
        ",
        &[
            ("module::Connecting", false),
            ("Connect::connect", true),
            ("Connect::close", false),
        ],
    );
}

#[test]
fn futures_in_unit_tests_are_not_listed() {
    assert_listed(
        "
        #[cfg(test)]
        pub async fn for_tests() {}
        impl Handle {
            #[cfg(test)]
            pub async fn for_tests(&self) {}
        }
        #[cfg(test)]
        mod tests { pub async fn in_a_test() {} }
        #[cfg(feature = \"tls\")]
        pub async fn for_a_feature() {}
        ",
        &[("module::for_a_feature", false)],
    );
}
