//! One picture of each kind, of made-up data: `gallery DIRECTORY`.

use std::{error::Error, path::PathBuf};

use olora_pictures::{
    Axis, Bar, Bars, Curves, Figure, Line, Marker, Style, VERMILLION, png, smoothed,
};

/// A loss that falls, with a noise that is the same each time.
fn loss(step: f64, speed: f64, phase: f64) -> f64 {
    let noise = (12.9 * step + phase).sin() * (4.1 * step).cos();
    (0.03 + 3.5 * (-step / speed).exp()) * (1.0 + 0.25 * noise)
}

fn run() -> Figure {
    let steps = (1..=168).map(f64::from);
    let logged: Vec<(f64, f64)> = steps.map(|step| (step, loss(step, 25.0, 0.0))).collect();
    let validation = (0..=12).map(|n| {
        (
            14.0 * f64::from(n),
            1.1 * loss(14.0 * f64::from(n), 26.0, 1.0),
        )
    });
    Figure::single(Curves {
        title: "Loss".to_owned(),
        note: String::new(),
        x: Axis::whole("step").showing(0.0, 0.0),
        y: Axis::new("loss, nats per trained token"),
        lines: vec![
            Line::new("training", Style::nth(2).paler(), logged.clone()),
            Line::new(
                "training, smoothed 0.6",
                Style::nth(2).unmarked().dashed(""),
                smoothed(&logged, 0.6),
            ),
            Line::new(
                "validation",
                Style::plain(VERMILLION).marked(Marker::Circle),
                validation.collect(),
            ),
        ],
    })
}

const METHODS: [&str; 4] = ["lora", "olora", "pissa", "olora-gradient+c0.5"];

fn comparison() -> Figure {
    let lines = METHODS.iter().enumerate().map(|(index, method)| {
        let speed = 30.0 - 5.0 * index as f64;
        let band: Vec<(f64, f64, f64)> = (1..=12)
            .map(|n| {
                let step = 14.0 * f64::from(n);
                let mean = loss(step, speed, 0.0);
                (step, 0.85 * mean, 1.2 * mean)
            })
            .collect();
        let means = band
            .iter()
            .map(|(step, low, _)| (*step, low / 0.85))
            .collect();
        Line::new(format!("{method} (lr 3e-3)"), Style::nth(index), means).with_band(band)
    });
    let rates = METHODS.iter().enumerate().map(|(index, method)| {
        let best = 1e-3 * (1.0 + index as f64);
        let at = |rate: f64| 0.1 * (1.0 + (rate / best).ln().powi(2));
        let tried = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2].map(|rate| {
            let diverges = rate > 2e-2 && index % 2 == 0;
            (rate, if diverges { f64::INFINITY } else { at(rate) })
        });
        Line::new(*method, Style::nth(index), tried.to_vec()).with_chosen(Some(1 + index / 2))
    });
    Figure::rows(vec![vec![
        Curves {
            title: "rank 8: validation loss".to_owned(),
            note: "mean of 10 seeds; band: lowest to highest of the seeds".to_owned(),
            x: Axis::whole("step"),
            y: Axis::new("validation loss, nats per trained token"),
            lines: lines.collect(),
        }
        .into(),
        Curves {
            title: "rank 8: last loss by learning rate".to_owned(),
            note: "filled: chosen; arrow: diverged".to_owned(),
            x: Axis::rate("learning rate"),
            y: Axis::new("loss after the last step, nats per trained token"),
            lines: rates.collect(),
        }
        .into(),
    ]])
}

fn arrived() -> Figure {
    let seeds = [
        (vec![168.0; 5], 0),
        (vec![111.0, 131.0, 140.0], 2),
        (Vec::new(), 5),
        (vec![94.0, 99.0, 104.0, 121.0, 110.0], 0),
    ];
    let bars = METHODS.iter().zip(seeds).enumerate();
    Figure::single(Bars {
        title: "rank 8: steps to lora's last loss".to_owned(),
        note: "bar: mean of the seeds, which are dots; open arrow: not reached by all of them"
            .to_owned(),
        x: Axis::whole("step"),
        unit: "steps".to_owned(),
        bars: bars
            .map(|(index, (method, (reached, missed)))| Bar {
                name: (*method).to_owned(),
                style: Style::nth(index),
                reached,
                missed,
                end: 168.0,
            })
            .collect(),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("give a directory")?);
    for (name, figure) in [
        ("run", run()),
        ("comparison", comparison()),
        ("arrived", arrived()),
    ] {
        let svg = figure.svg().ok_or("there is nothing to draw")?;
        std::fs::write(directory.join(name).with_extension("png"), png(&svg)?)?;
        std::fs::write(directory.join(name).with_extension("svg"), svg)?;
    }
    Ok(())
}
