//! Line charts over epochs, as SVG.

use super::{
    figures::{self, NONE},
    markup::{Element, element},
};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 310.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 46.0;
/// Mean advance of a character of the legend.
const ADVANCE: f64 = 6.9;
/// Epochs up to which every point is marked.
const MARKED: usize = 40;

/// Where an axis begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// At zero.
    Zero,
    /// Near the smallest value.
    Data,
}

/// One line.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its class in the style sheet.
    pub class: &'static str,
    /// Epoch and value, in order. A value that is not finite is a gap.
    pub points: Vec<(usize, f64)>,
}

/// Lines over epochs.
pub struct Chart {
    /// What is drawn, for those who do not see it.
    pub title: String,
    /// The unit of the values.
    pub unit: String,
    /// Where the axis of values begins.
    pub floor: Floor,
    /// The lines.
    pub series: Vec<Series>,
    /// Index of the line on which the best epoch is marked.
    pub marked: usize,
    /// The epoch that was kept.
    pub best_epoch: usize,
}

impl Chart {
    /// The drawing, or `None` where there is no value.
    pub fn svg(&self) -> Option<Element> {
        let plane = Plane::of(self)?;
        let svg = element("svg")
            .with("viewBox", format!("0 0 {WIDTH} {HEIGHT}"))
            .with("role", "img")
            .class("chart")
            .child(element("title").text(&self.title))
            .child(element("desc").text(self.description()))
            .child(plane.rows(&self.unit))
            .child(plane.columns())
            .child(self.best_line(&plane))
            .children(self.series.iter().map(|series| line(series, &plane)))
            .child(self.best_point(&plane))
            .child(self.legend())
            .child(self.tips(&plane));
        Some(svg)
    }

    fn description(&self) -> String {
        let sentences = self.series.iter().filter_map(|series| {
            let finite = || series.points.iter().filter(|point| point.1.is_finite());
            let (first, last) = (finite().next()?, finite().next_back()?);
            let kept = self.value(series, self.best_epoch);
            let kept = kept.map_or(String::new(), |value| {
                format!(
                    ", {} at the epoch kept, {}",
                    figures::small(value),
                    self.best_epoch
                )
            });
            Some(format!(
                "{}: {} at epoch {}, {} at epoch {}{kept}.",
                series.name,
                figures::small(first.1),
                first.0,
                figures::small(last.1),
                last.0
            ))
        });
        sentences.collect::<Vec<_>>().join(" ")
    }

    fn value(&self, series: &Series, epoch: usize) -> Option<f64> {
        let point = series.points.iter().find(|point| point.0 == epoch)?;
        point.1.is_finite().then_some(point.1)
    }

    fn best_line(&self, plane: &Plane) -> Element {
        let group = element("g").class("best");
        if !plane.epochs.contains(&self.best_epoch) {
            return group;
        }
        let x = plane.x(self.best_epoch);
        group.child(segment(x, TOP, x, HEIGHT - BOTTOM))
    }

    fn best_point(&self, plane: &Plane) -> Element {
        let group = element("g").class("best");
        let Some(series) = self.series.get(self.marked) else {
            return group;
        };
        let Some(value) = self.value(series, self.best_epoch) else {
            return group;
        };
        let x = plane.x(self.best_epoch);
        let is_right = x > LEFT + 0.55 * (WIDTH - LEFT - RIGHT);
        let (anchor, shift) = if is_right {
            ("end", -8.0)
        } else {
            ("start", 8.0)
        };
        let y = match self.floor {
            Floor::Zero => TOP + 16.0,
            Floor::Data => HEIGHT - BOTTOM - 12.0,
        };
        let label = format!("best epoch {}: {}", self.best_epoch, figures::metric(value));
        group
            .child(circle(x, plane.y(value), 4.5).class(series.class))
            .child(label_at(x + shift, y, anchor, label).class("note"))
    }

    /// Names of the lines above the plane, from its right end.
    fn legend(&self) -> Element {
        let mut x = WIDTH - RIGHT;
        let mut group = element("g").class("legend");
        for series in self.series.iter().rev() {
            x -= ADVANCE * series.name.chars().count() as f64;
            group = group.child(label_at(x, 22.0, "start", &series.name)).child(
                segment(x - 28.0, 17.5, x - 7.0, 17.5).class(format!("line {}", series.class)),
            );
            x -= 28.0 + 18.0;
        }
        group
    }

    /// One strip an epoch that tells its values to a pointer.
    fn tips(&self, plane: &Plane) -> Element {
        let width = plane.column();
        let strips = plane.epochs.clone().map(|epoch| {
            let values = self.series.iter().map(|series| {
                let value = self.value(series, epoch);
                let value = value.map_or(NONE.into(), figures::metric);
                format!("{}: {value}", series.name)
            });
            let tip = [format!("epoch {epoch}")].into_iter().chain(values);
            element("rect")
                .with("x", number((plane.x(epoch) - width / 2.0).max(LEFT)))
                .with("y", TOP)
                .with("width", number(width.min(WIDTH - LEFT - RIGHT)))
                .with("height", HEIGHT - TOP - BOTTOM)
                .child(element("title").text(tip.collect::<Vec<_>>().join("\n")))
        });
        element("g").class("tips").children(strips)
    }
}

/// Where epochs and values lie.
struct Plane {
    epochs: std::ops::RangeInclusive<usize>,
    ticks: Vec<f64>,
    digits: usize,
}

impl Plane {
    fn of(chart: &Chart) -> Option<Self> {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let values = || {
            points()
                .map(|point| point.1)
                .filter(|value| value.is_finite())
        };
        let first = points().map(|point| point.0).min()?;
        let last = points().map(|point| point.0).max()?;
        let most = values().reduce(f64::max)?;
        let least = match chart.floor {
            Floor::Zero => 0.0,
            Floor::Data => values().reduce(f64::min)?,
        };
        let (ticks, digits) = ticks(least, most);
        Some(Self {
            epochs: first..=last,
            ticks,
            digits,
        })
    }

    fn x(&self, epoch: usize) -> f64 {
        let (first, last) = (*self.epochs.start(), *self.epochs.end());
        let width = WIDTH - LEFT - RIGHT;
        match last - first {
            0 => LEFT + width / 2.0,
            span => LEFT + 12.0 + (width - 24.0) * (epoch - first) as f64 / span as f64,
        }
    }

    fn y(&self, value: f64) -> f64 {
        let (least, most) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - least) / (most - least)
    }

    fn column(&self) -> f64 {
        let span = (self.epochs.end() - self.epochs.start()).max(1);
        (WIDTH - LEFT - RIGHT - 24.0) / span as f64
    }

    /// The axis of values with its unit.
    fn rows(&self, unit: &str) -> Element {
        let rows = self.ticks.iter().flat_map(|&value| {
            let (y, digits) = (self.y(value), self.digits);
            [
                segment(LEFT, y, WIDTH - RIGHT, y),
                label_at(LEFT - 8.0, y + 4.5, "end", format!("{value:.digits$}")),
            ]
        });
        element("g")
            .class("axis")
            .children(rows)
            .child(label_at(2.0, 22.0, "start", unit).class("unit"))
    }

    /// The axis of epochs.
    fn columns(&self) -> Element {
        let base = HEIGHT - BOTTOM;
        let marks = self.epoch_ticks().into_iter().flat_map(|epoch| {
            let x = self.x(epoch);
            [
                segment(x, base, x, base + 5.0),
                label_at(x, base + 20.0, "middle", epoch),
            ]
        });
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        element("g")
            .class("axis")
            .children(marks)
            .child(label_at(middle, HEIGHT - 6.0, "middle", "epoch").class("unit"))
    }

    fn epoch_ticks(&self) -> Vec<usize> {
        let (first, last) = (*self.epochs.start(), *self.epochs.end());
        let wanted = ((last - first) as f64 / 8.0).max(1.0);
        let step = (nice(wanted).ceil() as usize).max(1);
        let mut ticks: Vec<usize> = (first..=last)
            .filter(|at| at.is_multiple_of(step))
            .collect();
        if ticks.first().is_none_or(|&at| (at - first) * 2 > step) {
            ticks.insert(0, first);
        }
        ticks
    }
}

fn line(series: &Series, plane: &Plane) -> Element {
    let mut path = String::new();
    let mut command = 'M';
    for &(epoch, value) in &series.points {
        if !value.is_finite() {
            command = 'M';
            continue;
        }
        path += &format!(
            "{command}{} {}",
            number(plane.x(epoch)),
            number(plane.y(value))
        );
        command = 'L';
    }
    let group = element("g").class(series.class);
    let group = group.child(element("path").class("line").with("d", path));
    let finite = series.points.iter().filter(|point| point.1.is_finite());
    match series.points.len() <= MARKED {
        true => group.children(finite.map(|&(at, value)| circle(plane.x(at), plane.y(value), 2.2))),
        false => group,
    }
}

fn segment(x1: f64, y1: f64, x2: f64, y2: f64) -> Element {
    element("line")
        .with("x1", number(x1))
        .with("y1", number(y1))
        .with("x2", number(x2))
        .with("y2", number(y2))
}

fn circle(x: f64, y: f64, radius: f64) -> Element {
    element("circle")
        .with("cx", number(x))
        .with("cy", number(y))
        .with("r", radius)
}

fn label_at(x: f64, y: f64, anchor: &str, text: impl std::fmt::Display) -> Element {
    element("text")
        .with("x", number(x))
        .with("y", number(y))
        .with("text-anchor", anchor)
        .text(text)
}

fn number(value: f64) -> String {
    format!("{value:.1}")
}

/// Ticks at round distances around `least..=most`, and the digits that tell them apart.
fn ticks(least: f64, most: f64) -> (Vec<f64>, usize) {
    let span = match most - least {
        span if span > 1e-9 * most.abs().max(1e-3) => span,
        _ => most.abs().max(1e-3) * 0.1,
    };
    let step = nice(span / 5.0);
    let (low, high) = ((least / step + 1e-9).floor(), (most / step - 1e-9).ceil());
    let (low, high) = match high > low {
        true => (low, high),
        // One value alone: the distance below it, which a share of 1 leaves room for.
        false if low > 0.0 => (low - 1.0, low),
        false => (low, low + 1.0),
    };
    let count = (high - low) as usize;
    let values = (0..=count)
        .map(|index| (low + index as f64) * step)
        .collect();
    (values, (-step.log10()).ceil().max(0.0) as usize)
}

/// The smallest of 1, 2, 5, 10 times a power of ten that is not less than `value`.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let fits = |factor: &f64| factor * power >= value * (1.0 - 1e-9);
    power * factors.into_iter().find(fits).unwrap_or(10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_data() {
        for (least, most) in [
            (0.0, 2.31),
            (0.0, 1.0),
            (0.91, 0.94),
            (0.5, 0.5),
            (0.0, 0.0),
            (1e-5, 3e-5),
            (-3.0, 1200.0),
        ] {
            let (ticks, digits) = ticks(least, most);
            assert!((2..=9).contains(&ticks.len()), "{least} {most}: {ticks:?}");
            let slack = 1e-6 * (ticks[1] - ticks[0]);
            assert!(ticks[0] <= least + slack && ticks[ticks.len() - 1] >= most - slack);
            let written: Vec<String> = ticks
                .iter()
                .map(|tick| format!("{tick:.digits$}"))
                .collect();
            assert!(
                written.windows(2).all(|pair| pair[0] != pair[1]),
                "{written:?}"
            );
        }
    }

    #[test]
    fn a_share_of_one_stays_below_the_top() {
        assert_eq!(ticks(1.0, 1.0), (vec![0.98, 1.0], 2));
    }

    fn chart(points: &[(usize, f64)]) -> Chart {
        Chart {
            title: "loss".into(),
            unit: "nats".into(),
            floor: Floor::Zero,
            series: vec![Series {
                name: "dev".into(),
                class: "dev",
                points: points.into(),
            }],
            marked: 0,
            best_epoch: 2,
        }
    }

    #[test]
    fn a_gap_where_a_value_is_not_finite() {
        let svg = chart(&[(1, 2.0), (2, 1.0), (3, f64::NAN), (4, 1.0)])
            .svg()
            .unwrap();
        let text = svg.to_string();
        let path = text
            .split(" d=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let commands: String = path.chars().filter(char::is_ascii_alphabetic).collect();
        assert_eq!(commands, "MLM");
        assert!(!text.contains("NaN") && text.contains("best epoch 2: 1.0000"));
    }

    #[test]
    fn few_or_no_values() {
        assert!(chart(&[]).svg().is_none());
        assert!(chart(&[(1, f64::NAN)]).svg().is_none());
        assert!(chart(&[(2, 0.0)]).svg().is_some());
    }

    #[test]
    fn every_epoch_has_its_tip() {
        let points: Vec<(usize, f64)> = (1..=120).map(|at| (at, 1.0 / at as f64)).collect();
        let text = chart(&points).svg().unwrap().to_string();
        assert_eq!(text.matches("<rect").count(), 120);
        assert!(text.contains(">120</text>") && text.contains(">1</text>"));
    }
}
