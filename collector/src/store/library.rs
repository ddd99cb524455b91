//! Where libchdb is. `cargo xtask setup` puts it into the cache folder; a package puts it under /usr/lib.

use std::path::PathBuf;

/// Part of the cache folder's name: the release that the project is tested with.
pub const VERSION: &str = "26.7.3";

/// Where a system package installs it.
const SYSTEM: &str = "/usr/lib/holdfast/libchdb.so";

/// The library that `HOLDFAST_LIBCHDB` names; else the first of the usual places that has it.
///
/// A name that is given is taken as it is: if nothing is there, opening it says so.
pub fn locate() -> anyhow::Result<PathBuf> {
    locate_in(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn locate_in(variable: impl Fn(&str) -> Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = variable("HOLDFAST_LIBCHDB") {
        return Ok(path);
    }
    let cache = variable("HOLDFAST_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("holdfast")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/holdfast")));
    let cached = cache.map(|dir| dir.join(format!("libchdb-{VERSION}")).join("libchdb.so"));
    let places: Vec<PathBuf> = cached.into_iter().chain([PathBuf::from(SYSTEM)]).collect();
    if let Some(found) = places.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let looked: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
    anyhow::bail!(
        "libchdb.so, the embedded store's engine, is at none of {}: run `cargo xtask setup`, or name it in \
         HOLDFAST_LIBCHDB, or use a ClickHouse server with --store http://...",
        looked.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_named_wins_over_the_cache() {
        let named = locate_in(|name| (name == "HOLDFAST_LIBCHDB").then(|| "/x/libchdb.so".into()));
        assert_eq!(named.unwrap(), PathBuf::from("/x/libchdb.so"));
    }

    #[test]
    fn the_cache_is_searched_where_the_environment_puts_it() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libchdb-26.7.3/libchdb.so");
        std::fs::create_dir(library.parent().unwrap()).unwrap();
        std::fs::write(&library, "").unwrap();
        let found = locate_in(|name| (name == "HOLDFAST_CACHE").then(|| dir.path().into()));
        assert_eq!(found.unwrap(), library);
    }

    #[test]
    fn a_library_that_is_nowhere_is_an_error_that_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = locate_in(|name| (name == "XDG_CACHE_HOME").then(|| dir.path().into()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!(
                "{}/holdfast/libchdb-26.7.3/libchdb.so",
                dir.path().display()
            )),
            "{error}"
        );
        assert!(
            error.contains("cargo xtask setup") && error.contains("HOLDFAST_LIBCHDB"),
            "{error}"
        );
    }
}
