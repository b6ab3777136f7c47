//! A picture as PNG.

use std::sync::Arc;

use png::{BitDepth, ColorType, Encoder, EncodingError, Filter};
use resvg::{
    render,
    tiny_skia::{Color, Pixmap, Transform},
    usvg::{
        Options, Tree,
        fontdb::{Database, Source},
    },
};

/// Pixels for each of the SVG: enough for print.
const SCALE: f32 = 2.0;

/// Why an SVG could not be drawn as PNG.
#[derive(Debug, thiserror::Error)]
#[error("drawing a PNG: {0}")]
pub struct PngError(String);

/// An SVG's picture, with a font that comes along: a machine may have none.
///
/// # Errors
///
/// [`PngError`] of text that is no SVG, or of one without room for a pixel or
/// with more pixels than fit in memory.
pub fn png(svg: &str) -> Result<Vec<u8>, PngError> {
    let tree = Tree::from_str(svg, &options()).map_err(|error| PngError(error.to_string()))?;
    let size = tree.size();
    let (width, height) = (SCALE * size.width(), SCALE * size.height());
    let pixels = Pixmap::new(width.ceil() as u32, height.ceil() as u32);
    let mut pixels =
        pixels.ok_or_else(|| PngError(format!("{width} × {height} pixels are too many")))?;
    pixels.fill(Color::WHITE);
    let transform = Transform::from_scale(SCALE, SCALE);
    render(&tree, transform, &mut pixels.as_mut());
    encoded(&pixels).map_err(|error| PngError(error.to_string()))
}

/// Without what photographs are filtered with, which for lines on white makes larger files in three
/// times the time, and without an alpha channel: on white all is opaque.
fn encoded(pixels: &Pixmap) -> Result<Vec<u8>, EncodingError> {
    let rgba = pixels.data().chunks_exact(4);
    let rgb: Vec<u8> = rgba
        .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
        .collect();
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, pixels.width(), pixels.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_filter(Filter::NoFilter);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&rgb)?;
    writer.finish()?;
    Ok(file)
}

/// With `DejaVu` Sans, and no font of the machine.
pub(crate) fn options() -> Options<'static> {
    let mut fonts = Database::new();
    fonts.load_font_source(Source::Binary(Arc::new(dejavu::sans::regular())));
    fonts.set_sans_serif_family("DejaVu Sans");
    Options {
        fontdb: Arc::new(fonts),
        ..Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::png;

    #[test]
    fn text_is_drawn_without_a_font_of_the_machine() {
        let svg = |text: &str| {
            format!(
                r##"<svg width="60" height="20" xmlns="http://www.w3.org/2000/svg">
                <rect width="60" height="20" fill="#ffffff"/>
                <text x="2" y="15" font-family="sans-serif" font-size="14" fill="#000000">{text}</text></svg>"##
            )
        };
        let (blank, written) = (png(&svg("")).unwrap(), png(&svg("loss")).unwrap());
        assert_eq!(&written[1..4], b"PNG");
        assert_ne!(blank, written, "the text is not there");
    }

    #[test]
    fn what_is_no_svg_is_refused() {
        let error = png("<svg").unwrap_err().to_string();
        assert!(error.starts_with("drawing a PNG: "), "{error}");
    }
}
