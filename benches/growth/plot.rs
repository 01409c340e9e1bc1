//! A plot with logarithmic axes, as SVG text.

use std::fmt::Write;

/// Times of one kind of work.
pub struct Line {
    name: String,
    /// From so large an x on, the data lie in memory.
    memory: f64,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub fn new(name: &str, memory: f64) -> Self {
        Self { name: name.to_owned(), memory, points: Vec::new() }
    }

    pub fn add(&mut self, x: f64, y: f64) {
        self.points.push((x, y));
    }

    /// How flat it is, within the caches and outside.
    pub fn summary(&self) -> String {
        let spread = |outside: bool| {
            let ys = self.points.iter().filter(|(x, _)| (*x >= self.memory) == outside).map(|(_, y)| *y);
            let (low, high, count) = ys.fold((f64::INFINITY, 0.0_f64, 0), |(low, high, count), y| {
                (low.min(y), high.max(y), count + 1)
            });
            if count > 1 { format!("{:.2}", high / low) } else { "-".to_owned() }
        };
        let times: Vec<String> = self.points.iter().map(|(x, y)| format!("{x:.0}: {y:.3}")).collect();
        format!(
            "{:<60} largest / smallest: {} within the caches, {} outside   {}",
            self.name,
            spread(false),
            spread(true),
            times.join("  ")
        )
    }
}

/// What stands around the lines.
pub struct Plot<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub about: &'a str,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 260.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#566573"];

impl Plot<'_> {
    pub fn svg(&self, lines: &[Line]) -> String {
        let points = || lines.iter().flat_map(|line| &line.points);
        let decades = |of: fn(&(f64, f64)) -> f64| {
            let (low, high) =
                points().map(of).fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(v), b.max(v)));
            (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0))
        };
        let ((x0, x1), (y0, y1)) = (decades(|p| p.0), decades(|p| p.1));
        let at_x = |x: f64| LEFT + (x.log10() - x0) / (x1 - x0) * (RIGHT - LEFT);
        let at_y = |y: f64| BOTTOM - (y.log10() - y0) / (y1 - y0) * (BOTTOM - TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>\n<text x=\"{LEFT}\" y=\"38\">{}</text>\n",
            self.title, self.y
        );
        let mut put = |text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(svg, "{text}");
        };
        for power in x0 as i32..=x1 as i32 {
            let x = at_x(10f64.powi(power));
            put(format!("<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/>"));
            put(format!(
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">1e{power}</text>",
                BOTTOM + 16.0
            ));
        }
        for power in y0 as i32..=y1 as i32 {
            let y = at_y(10f64.powi(power));
            put(format!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>"));
            put(format!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{power}</text>",
                LEFT - 6.0,
                y + 4.0
            ));
        }
        put(format!("<text x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\">{}</text>", BOTTOM + 32.0, self.x));
        for (i, line) in lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let path: Vec<String> =
                line.points.iter().map(|&(x, y)| format!("{:.1} {:.1}", at_x(x), at_y(y))).collect();
            put(format!(
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join("L")
            ));
            let y = BOTTOM + 50.0 + 16.0 * i as f64;
            put(format!("<path d=\"M{LEFT} {}h24\" stroke=\"{colour}\" stroke-width=\"2\"/>", y - 4.0));
            put(format!("<text x=\"{}\" y=\"{y}\">{}</text>", LEFT + 32.0, line.name));
        }
        put(format!(
            "<text x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\" fill=\"#777\">{}</text>",
            HEIGHT - 8.0,
            self.about
        ));
        svg.push_str("</svg>\n");
        svg
    }
}
