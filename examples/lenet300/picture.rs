//! Pictures of what was found, as SVG.

use std::fmt::Write;

use trimnet::ndarray::ArrayView2;
use trimnet::nn::Mlp;

const INK: &str = "#1f4e79";

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
        let words = format!("{} x {}: {zeros} zeros; the others", linear.outputs(), linear.inputs());
        text(&mut body, left + WIDTH / 2.0, 14.0, "middle", "black", &words);
    }
    svg(layers * 220, 174, &body)
}

fn histogram(w: ArrayView2<'_, f32>) -> Vec<(f32, usize)> {
    let mut sorted: Vec<f32> = w.iter().copied().filter(|&w| w != 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len())).collect()
}

/// One point of the front: a result of a preset, or of others by name.
pub struct Point {
    pub of: String,
    pub bytes: f64,
    pub error: f64,
    pub ours: bool,
}

/// Bytes (on a logarithmic axis) against the test error in percent; presets by colour, others by number.
pub fn front(points: &[Point]) -> String {
    const COLOURS: [&str; 4] = [INK, "#c04f15", "#2e7d32", "#6a1b9a"];
    const RIGHT: f64 = 520.0;
    const BOTTOM: f64 = 340.0;
    const MOST: f64 = 4.0;
    let x = |bytes: f64| 60.0 + (bytes / 1000.0).ln() / 40_f64.ln() * (RIGHT - 60.0);
    let y = |error: f64| 20.0 + (MOST - error.clamp(0.0, MOST)) / MOST * (BOTTOM - 20.0);
    let mut body = String::new();
    for kilobytes in [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0] {
        let at = x(kilobytes * 1000.0);
        let _ = writeln!(body, "<path d=\"M{at:.1} 20V{BOTTOM}\" stroke=\"#e4e4e4\"/>");
        text(&mut body, at, BOTTOM + 14.0, "middle", "black", &format!("{kilobytes}"));
    }
    for half in 0..=8 {
        let (percent, at) = (0.5 * f64::from(half), y(0.5 * f64::from(half)));
        let _ = writeln!(body, "<path d=\"M60 {at:.1}H{RIGHT}\" stroke=\"#e4e4e4\"/>");
        text(&mut body, 54.0, at + 4.0, "end", "black", &format!("{percent:.1}"));
    }
    text(&mut body, 290.0, BOTTOM + 30.0, "middle", "black", "kilobytes of the file (1,000 bytes)");
    text(&mut body, 10.0, 12.0, "start", "black", "percent of the 10,000 test images that are wrong");

    let mut series: Vec<&str> = Vec::new();
    let (mut others, mut row) = (0, 32.0);
    for point in points {
        let (x, y) = (x(point.bytes), y(point.error));
        if point.ours {
            let new = !series.contains(&point.of.as_str());
            if new {
                series.push(&point.of);
            }
            let at = series.iter().position(|&of| of == point.of).unwrap_or(0);
            let mut dot = |x: f64, y: f64| {
                let fill = COLOURS[at % COLOURS.len()];
                let _ = writeln!(body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\"/>");
            };
            dot(x, y);
            if new {
                dot(RIGHT + 22.0, row - 4.0);
                text(
                    &mut body,
                    RIGHT + 34.0,
                    row,
                    "start",
                    "black",
                    &format!("trimnet, preset {}", point.of),
                );
                row += 18.0;
            }
        } else {
            others += 1;
            for (x, y) in [(x, y), (RIGHT + 22.0, row - 4.0)] {
                let _ = writeln!(body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\" fill=\"#e0e0e0\"/>");
                text(&mut body, x, y + 4.0, "middle", "black", &others.to_string());
            }
            text(&mut body, RIGHT + 34.0, row, "start", "black", &point.of);
            row += 18.0;
        }
    }
    svg(850, BOTTOM as usize + 40, &body)
}
