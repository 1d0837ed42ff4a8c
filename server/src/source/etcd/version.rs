//! Tells which etcd versions answer progress requests in order. Pure.

/// True if this version of etcd sends the answer to a manual progress request after every event up to
/// its revision.
///
/// Up to 3.4.30 and 3.5.12 the answer overtakes events, because it uses another queue. A version that
/// cannot be parsed, or that is not a release, is not trusted.
pub(super) fn orders_progress(version: &str) -> bool {
    let Some((major, minor, patch)) = parse(version) else {
        return false;
    };
    match (major, minor) {
        (3, 4) => patch >= 31,
        (3, 5) => patch >= 13,
        (major, minor) => (major, minor) >= (3, 6),
    }
}

/// Major, minor and patch of a release. Build metadata (`+…`) does not matter.
fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let release = version
        .split_once('+')
        .map_or(version, |(release, _)| release);
    let mut numbers = release.split('.').map(|number| number.parse().ok());
    let parsed = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_with_the_fix_are_trusted() {
        for version in [
            "3.4.31",
            "3.4.35",
            "3.5.13",
            "3.5.16+debian",
            "3.6.0",
            "3.10.2",
            "4.0.0",
        ] {
            assert!(orders_progress(version), "{version}");
        }
        for version in ["3.3.99", "3.4.23", "3.4.30", "3.5.0", "3.5.12", "2.9.9"] {
            assert!(!orders_progress(version), "{version}");
        }
        for version in [
            "",
            "3.6",
            "3.6.0-alpha.0",
            "3.6.0.1",
            "three",
            "3.6.x",
            "-3.6.0",
        ] {
            assert!(!orders_progress(version), "{version}");
        }
    }
}
