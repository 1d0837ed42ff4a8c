//! Small plots in SVG: grouped bars, one axis, readable without anything else.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;

/// Lines across the plot.
const STEPS: usize = 5;

/// Colours that people tell apart, also those who do not see red and green.
const COLOURS: [&str; 6] = [
    "#0072b2", "#e69f00", "#009e73", "#999999", "#cc79a7", "#56b4e9",
];

/// Bars in groups: for each group a label, and a value for each series, where there is one.
#[derive(Debug)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) axis: String,
    pub(super) series: Vec<String>,
    pub(super) groups: Vec<(String, Vec<Option<f64>>)>,
}

impl Bars {
    pub(super) fn draw(&self) -> String {
        let mut svg = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut svg);
        svg
    }

    fn write(&self, svg: &mut String) -> std::fmt::Result {
        let values = self.groups.iter().flat_map(|(_, values)| values);
        let most = values.flatten().copied().fold(0.0, f64::max);
        let step = round_step(most / STEPS as f64);
        let steps = (most / step).ceil().max(1.0);
        let y = |value: f64| HEIGHT - BOTTOM - value / (step * steps) * (HEIGHT - TOP - BOTTOM);
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>"
        )?;
        text(
            svg,
            WIDTH / 2.0,
            20.0,
            "middle",
            &self.title,
            "font-size=\"15\"",
        )?;
        let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
        let turned = format!("transform=\"rotate(-90 16 {middle})\"");
        text(svg, 16.0, middle, "middle", &self.axis, &turned)?;
        let mut line = 0.0;
        while line <= steps {
            let (at, value) = (y(line * step), line * step);
            writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>",
                WIDTH - RIGHT
            )?;
            text(svg, LEFT - 6.0, at + 4.0, "end", &label(value), "")?;
            line += 1.0;
        }
        let group = (WIDTH - LEFT - RIGHT) / self.groups.len().max(1) as f64;
        let bar = group * 0.8 / self.series.len().max(1) as f64;
        for (index, (name, values)) in self.groups.iter().enumerate() {
            let start = LEFT + group * index as f64;
            let middle = start + group / 2.0;
            text(svg, middle, HEIGHT - BOTTOM + 18.0, "middle", name, "")?;
            for (series, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let x = start + group * 0.1 + bar * series as f64;
                // Measured by difference, so it may be a little below nothing.
                let top = y(value.max(0.0));
                writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                    bar * 0.92,
                    HEIGHT - BOTTOM - top,
                    COLOURS[series % COLOURS.len()]
                )?;
                let at = x + bar * 0.46;
                text(
                    svg,
                    at,
                    top - 4.0,
                    "middle",
                    &label(*value),
                    "font-size=\"10\"",
                )?;
            }
        }
        let each = (WIDTH - LEFT - RIGHT) / self.series.len().max(1) as f64;
        for (index, name) in self.series.iter().enumerate() {
            let x = LEFT + each.min(140.0) * index as f64;
            let colour = COLOURS[index % COLOURS.len()];
            writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
            )?;
            text(svg, x + 18.0, 42.0, "start", name, "")?;
        }
        writeln!(svg, "</svg>")
    }
}

fn text(
    svg: &mut String,
    x: f64,
    y: f64,
    anchor: &str,
    text: &str,
    more: &str,
) -> std::fmt::Result {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{text}</text>"
    )
}

/// A round number not below `least`, so that lines are at 1, 2 or 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|times| times * power >= least);
    times.unwrap_or(10.0) * power
}

fn label(value: f64) -> String {
    super::table::number(value)
}
