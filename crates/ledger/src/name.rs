//! Names of datasets and models: what people read in lists, policies and receipts.

/// Longest name of a dataset or model.
pub const MAX_NAME_CHARACTERS: usize = 128;

/// Whether everybody sees the same when this name is shown: two names that look alike are one lie.
pub(crate) fn is_showable(name: &str) -> bool {
    (1..=MAX_NAME_CHARACTERS).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(|c| c.is_control() || is_invisible(c))
}

/// Format characters (Unicode's category Cf, with what is unassigned among them) and line separators: they are
/// not seen, and some turn the text around them.
fn is_invisible(c: char) -> bool {
    INVISIBLE.iter().any(|&(first, last)| (first..=last).contains(&c))
}

const INVISIBLE: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e007f}'),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_script_are_shown() {
        for name in [
            "a",
            "Klinik Süd 2",
            "東京病院",
            "مستشفى",
            "β-cohort (v1)",
            &"x".repeat(128),
        ] {
            assert!(is_showable(name), "{name:?}");
        }
    }

    #[test]
    fn names_that_look_like_others_are_not() {
        for name in ["", " x", "x ", "a\nb", "a\u{0}", &"x".repeat(129)] {
            assert!(!is_showable(name), "{name:?}");
        }
        for hidden in
            "\u{200b}\u{200f}\u{202a}\u{202e}\u{2060}\u{2069}\u{feff}\u{ad}\u{2028}\u{e0041}".chars()
        {
            assert!(!is_showable(&format!("nor{hidden}th")), "{hidden:?}");
        }
    }
}
