//! Text with `*` in it.

use std::fmt;

/// The literal pieces between the stars: one piece has no star, two have one between them, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pieces: Vec<String>,
}

impl Pattern {
    /// From the pieces between the stars. Neighbouring stars are one. At least one piece; none means the empty text.
    pub fn from_pieces(pieces: Vec<String>) -> Self {
        let last = pieces.len().saturating_sub(1);
        let mut kept: Vec<String> = Vec::with_capacity(pieces.len());
        for (i, piece) in pieces.into_iter().enumerate() {
            if i == 0 || i == last || !piece.is_empty() {
                kept.push(piece);
            }
        }
        if kept.is_empty() {
            kept.push(String::new());
        }
        Self { pieces: kept }
    }

    /// A text without stars.
    pub fn literal(text: &str) -> Self {
        Self {
            pieces: vec![text.to_owned()],
        }
    }

    /// The text, where there is no star.
    pub fn as_literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether the whole of `text` matches. Each star takes as little as it can, so the time is linear in practice
    /// and at most the product of both lengths.
    pub fn matches(&self, text: &str) -> bool {
        let (first, rest) = match self.pieces.split_first() {
            Some((first, rest)) => (first, rest),
            None => return text.is_empty(),
        };
        let Some((last, middle)) = rest.split_last() else {
            return text == first;
        };
        let Some(mut left) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        for piece in middle {
            match left.split_once(piece.as_str()) {
                Some((_, after)) => left = after,
                None => return false,
            }
        }
        left.ends_with(last.as_str())
    }
}

/// Characters that stand for themselves only in quotes.
pub(super) fn needs_quotes(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, ',' | '&' | '!' | '"' | '(' | ')' | '|')
}

fn escaped(text: &str, out: &mut String) {
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '*') {
            out.push('\\');
        }
        out.push(c);
    }
}

/// A key, quoted where it has to be.
pub(super) fn quoted_literal(text: &str) -> String {
    Pattern::literal(text).to_string()
}

impl fmt::Display for Pattern {
    /// As it would be written in an expression.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |piece: &String| {
            !piece
                .chars()
                .any(|c| needs_quotes(c) || matches!(c, '*' | '\\' | '/' | '='))
        };
        if self.pieces.iter().all(plain) && self.as_literal() != Some("") {
            return f.write_str(&self.pieces.join("*"));
        }
        let mut out = String::new();
        for (i, piece) in self.pieces.iter().enumerate() {
            if i > 0 {
                out.push('*');
            }
            escaped(piece, &mut out);
        }
        write!(f, "\"{out}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::from_pieces(text.split('*').map(str::to_owned).collect())
    }

    #[test]
    fn a_star_stands_for_any_characters_also_none() {
        let table = [
            ("web-*", "web-", true),
            ("web-*", "web-1", true),
            ("web-*", "web", false),
            ("*", "", true),
            ("*-blue", "web-blue", true),
            ("*-blue", "web-blue-2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("a**b", "ab", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("", "", true),
            ("", "x", false),
            ("*ü*", "grün", true),
        ];
        for (p, text, expected) in table {
            assert_eq!(pattern(p).matches(text), expected, "{p} on {text}");
        }
    }
}
