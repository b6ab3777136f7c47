//! `board`, and `report --html`.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use olora_board::{Board, router};
use olora_files::write_atomically;
use olora_web::{Server, Settings, Stop, WebError};

use crate::{
    Usage,
    args::{BoardArgs, ReportArgs},
    signals,
    terminal::{answer, say},
};

pub(crate) fn board(args: &BoardArgs) -> Result<ExitCode> {
    let board = Arc::new(Board::new(&args.directory)?);
    let settings = Settings {
        host: args.host,
        port: args.port,
        key: Settings::key_from_env().map_err(told)?,
        origins: args.origins.clone(),
        ..Settings::default()
    };
    let server = Server::bind(settings).map_err(told)?;
    let stop = Stop::default();
    signals::end_server(&stop)?;
    answer(&format!("board on {}", server.url()));
    server.run(router(&board, &stop), &stop)?;
    Ok(ExitCode::SUCCESS)
}

/// What was typed, or set in the environment, cannot be meant; a port that another
/// process has can.
pub(crate) fn told(error: WebError) -> anyhow::Error {
    match error {
        WebError::NoKey(_) | WebError::Key(_) | WebError::Origin(_) => {
            Usage::new(&error.to_string())
        }
        WebError::Bind { .. } | WebError::Io(_) => error.into(),
    }
}

pub(crate) fn report(args: &ReportArgs) -> Result<ExitCode> {
    let path = match (&args.output, args.directories.as_slice()) {
        (Some(path), _) => path.clone(),
        (None, [directory]) => directory.join("report.html"),
        (None, _) => {
            return Err(Usage::new(
                "--html makes one file of several directories: say which with -o FILE",
            ));
        }
    };
    let html = olora_board::report(&args.directories)?;
    write_atomically(&path, |file| file.write_all(html.as_bytes()))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    say(&format!("report: {}", path.display()));
    Ok(ExitCode::SUCCESS)
}
