//! Elements of HTML and SVG. Whatever is put into them is escaped when they are written.

use std::fmt::{self, Display, Formatter, Write};

/// Elements without content and end tag.
const VOID: [&str; 2] = ["br", "meta"];

/// One element.
pub struct Element {
    tag: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Child>,
}

enum Child {
    Element(Element),
    Text(String),
    Style(&'static str),
}

/// An element without attributes and content.
pub fn element(tag: &'static str) -> Element {
    Element {
        tag,
        attributes: Vec::new(),
        children: Vec::new(),
    }
}

impl Element {
    /// Adds an attribute.
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// Adds a class.
    pub fn class(mut self, class: impl Display) -> Self {
        let classes = self
            .attributes
            .iter_mut()
            .find(|(name, _)| *name == "class");
        match classes {
            Some((_, classes)) => *classes += &format!(" {class}"),
            None => return self.with("class", class),
        }
        self
    }

    /// Adds text.
    pub fn text(mut self, text: impl Display) -> Self {
        self.children.push(Child::Text(text.to_string()));
        self
    }

    /// Adds an element.
    pub fn child(mut self, child: Element) -> Self {
        self.children.push(Child::Element(child));
        self
    }

    /// Adds elements.
    pub fn children(self, children: impl IntoIterator<Item = Element>) -> Self {
        children.into_iter().fold(self, Self::child)
    }

    /// Adds a style sheet of the program's own, which is not escaped.
    pub fn style(mut self, sheet: &'static str) -> Self {
        self.children.push(Child::Style(sheet));
        self
    }
}

impl Display for Element {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "<{}", self.tag)?;
        for (name, value) in &self.attributes {
            write!(out, " {name}=\"")?;
            escape(value, out)?;
            out.write_char('"')?;
        }
        if VOID.contains(&self.tag) {
            return out.write_str("/>");
        }
        out.write_char('>')?;
        for child in &self.children {
            match child {
                Child::Element(element) => element.fmt(out)?,
                Child::Text(text) => escape(text, out)?,
                Child::Style(sheet) => out.write_str(sheet)?,
            }
        }
        write!(out, "</{}>", self.tag)
    }
}

/// Writes `text` so that it stands for itself. Characters that no document may hold become U+FFFD.
fn escape(text: &str, out: &mut Formatter<'_>) -> fmt::Result {
    for character in text.chars() {
        match character {
            '&' => out.write_str("&amp;")?,
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '"' => out.write_str("&quot;")?,
            '\'' => out.write_str("&#39;")?,
            '\n' | '\t' => out.write_char(character)?,
            '\u{fffe}' | '\u{ffff}' => out.write_char('\u{fffd}')?,
            _ if character.is_control() => out.write_char('\u{fffd}')?,
            _ => out.write_char(character)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_text_and_attributes() {
        let link = element("a")
            .with("title", "\"x' <&>")
            .text("<b>\u{1b}&amp;\n");
        assert_eq!(
            link.to_string(),
            "<a title=\"&quot;x&#39; &lt;&amp;&gt;\">&lt;b&gt;\u{fffd}&amp;amp;\n</a>"
        );
    }

    #[test]
    fn ends_what_it_begins() {
        let item = element("li").class("one").class("two");
        let list = element("ul").children([element("li").child(element("br")), item]);
        assert_eq!(
            list.to_string(),
            "<ul><li><br/></li><li class=\"one two\"></li></ul>"
        );
    }
}
