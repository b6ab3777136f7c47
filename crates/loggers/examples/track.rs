//! Logs a made-up run to TensorBoard and MLflow.
//!
//! ```text
//! cargo run -p olora-loggers --release --example track -- DIR [ADDRESS [STEPS [RESUMED_AFTER]]]
//! ```
//!
//! Ten steps a second. Kill the server while it goes on, and start it again.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::{env, path::PathBuf, thread::sleep, time::Duration};

use olora_loggers::{EventFile, Mlflow, MlflowOptions, Pace, Server, Status};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("give a directory")?);
    let address = arguments.next();
    let number = |text: Option<String>| text.map(|text| text.parse()).transpose();
    let steps: u64 = number(arguments.next())?.unwrap_or(20);
    let resumed_after: Option<u64> = number(arguments.next())?;
    let first = resumed_after.map_or(0, |step| step + 1);

    let mut file = EventFile::begin(&directory, first)?;
    file.text(first, "note", "a run that was *made up*")?;
    let options = MlflowOptions {
        server: Server::from_env(address.as_deref())?,
        experiment: "Default".to_owned(),
        run_name: "made up".to_owned(),
        params: vec![
            ("steps".to_owned(), steps.to_string()),
            (
                "adapter.rank_pattern.model.*.q_proj".to_owned(),
                "4".to_owned(),
            ),
            ("long".to_owned(), "x".repeat(7000)),
            ("empty".to_owned(), String::new()),
        ],
        tags: vec![("mlflow.source.name".to_owned(), "track".to_owned())],
        directory,
        resumed_after,
        pace: Pace::default(),
    };
    let mlflow = Mlflow::begin(options);
    for step in first..steps {
        let loss = 3.0 / (step as f64 + 2.0);
        let mut values = vec![("train/loss".to_owned(), loss)];
        if step % 10 == 0 {
            values.push(("validation/odd".to_owned(), f64::INFINITY));
            values.push(("validation/none".to_owned(), f64::NAN));
        }
        file.scalars(step, &values)?;
        mlflow.log(step, &values);
        for note in mlflow.notes() {
            eprintln!("step {step}: {note}");
        }
        sleep(Duration::from_millis(100));
    }
    for note in mlflow.finish(Status::Finished) {
        eprintln!("{note}");
    }
    Ok(())
}
