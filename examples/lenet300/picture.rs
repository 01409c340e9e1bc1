//! Pictures of what was found, as SVG.

use std::fmt::Write;

use trimnet::ndarray::ArrayView2;
use trimnet::nn::Mlp;

const INK: &str = "#1f4e79";
const PALE: &str = "#b0b0b0";

fn svg(width: usize, height: usize, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, fill: &str, text: &str) {
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{text}</text>"
    );
}

/// How many weights read each pixel of a square image.
pub fn pixels(mlp: &Mlp<f32>) -> String {
    const CELL: usize = 12;
    let Some(first) = mlp.linears().next() else { return svg(1, 1, "") };
    let side = first.inputs().isqrt();
    let counts: Vec<usize> = first
        .weight()
        .columns()
        .into_iter()
        .map(|column| column.iter().filter(|&&w| w != 0.0).count())
        .collect();
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let live = counts.iter().filter(|&&n| n > 0).count();
    let mut body = String::new();
    for (at, &n) in counts.iter().enumerate() {
        let (x, y) = (at % side * CELL, at / side * CELL);
        let shade = 255 - 225 * n / most;
        let fill = if n == 0 {
            "#f3efe6".to_owned()
        } else {
            format!("rgb({},{},{})", shade / 2, shade * 3 / 4, shade)
        };
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{fill}\" stroke=\"white\"/>"
        );
    }
    let size = side * CELL;
    let words = format!("{live} of {} pixels are read; the darkest by {most} weights", counts.len());
    text(&mut body, 4.0, size as f64 + 15.0, "start", "black", &words);
    svg(size, size + 22, &body)
}

/// How often each value occurs in each layer, zeros left out.
pub fn weights(mlp: &Mlp<f32>) -> String {
    const WIDTH: f64 = 200.0;
    let mut body = String::new();
    let layers = mlp.linears().count();
    for (index, linear) in mlp.linears().enumerate() {
        let values = histogram(linear.weight());
        let most = values.iter().map(|&(_, n)| n).max().unwrap_or(1) as f64;
        let left = index as f64 * (WIDTH + 20.0) + 10.0;
        let bar = WIDTH / values.len().max(1) as f64;
        for (at, &(value, n)) in values.iter().enumerate() {
            let (x, height) = (left + at as f64 * bar, 120.0 * n as f64 / most);
            let y = 150.0 - height;
            let _ = writeln!(
                body,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{INK}\"/>",
                x + 2.0,
                bar - 4.0
            );
            text(&mut body, x + bar / 2.0, y - 4.0, "middle", "black", &n.to_string());
            text(&mut body, x + bar / 2.0, 164.0, "middle", "black", &format!("{value:.2}"));
        }
        let zeros = linear.weight().len() - values.iter().map(|&(_, n)| n).sum::<usize>();
        let words = format!("{} x {}: {zeros} zeros and", linear.outputs(), linear.inputs());
        text(&mut body, left + WIDTH / 2.0, 14.0, "middle", "black", &words);
    }
    svg(layers * 220, 174, &body)
}

fn histogram(w: ArrayView2<'_, f32>) -> Vec<(f32, usize)> {
    let mut sorted: Vec<f32> = w.iter().copied().filter(|&w| w != 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len())).collect()
}

/// One point of the front: a name, bytes, test error in percent, and whether it is ours.
pub struct Point {
    pub name: String,
    pub bytes: f64,
    pub error: f64,
    pub ours: bool,
}

/// Bytes (on a logarithmic axis) against the test error.
pub fn front(points: &[Point]) -> String {
    const W: f64 = 640.0;
    const H: f64 = 360.0;
    let x = |bytes: f64| 50.0 + (bytes / 1000.0).ln() / 40_f64.ln() * (W - 70.0);
    let y = |error: f64| 20.0 + (3.5 - error.clamp(0.5, 3.5)) / 3.0 * (H - 60.0);
    let mut body = String::new();
    for kilobytes in [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0] {
        let at = x(kilobytes * 1000.0);
        let _ = writeln!(body, "<path d=\"M{at:.1} 20V{:.1}\" stroke=\"#e4e4e4\"/>", H - 40.0);
        text(&mut body, at, H - 26.0, "middle", "black", &format!("{kilobytes} kB"));
    }
    for half in 1..=7 {
        let at = y(0.5 * f64::from(half));
        let _ = writeln!(body, "<path d=\"M50 {at:.1}H{:.1}\" stroke=\"#e4e4e4\"/>", W - 20.0);
        text(&mut body, 44.0, at + 4.0, "end", "black", &format!("{:.1} %", 0.5 * f64::from(half)));
    }
    for point in points {
        let (x, y, fill) = (x(point.bytes), y(point.error), if point.ours { INK } else { PALE });
        let _ = writeln!(body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\"/>");
        if !point.name.is_empty() {
            text(&mut body, x, y - 8.0, "middle", if point.ours { INK } else { "#707070" }, &point.name);
        }
    }
    text(&mut body, W / 2.0, H - 6.0, "middle", "black", "bytes of the file; test error of 10,000 images");
    svg(W as usize, H as usize, &body)
}
