//! A run on the server: made, found again, described.

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
};

use olora_files::write_atomically;
use serde_json::{Value, json};

use super::{
    Status,
    client::{Client, Failure, MOST_PARAMS},
    names,
};
use crate::clock;

/// The tag by which a run is found that was made without our hearing of it.
const KEY: &str = "olora.key";
/// What stands before a parameter's key where a run that goes on has another
/// value: MLflow lets nobody change a parameter.
const RESUMED: &str = "resumed.";

/// What is to be on the server before values can be sent.
pub(super) struct Opening {
    path: PathBuf,
    identity: Identity,
    experiment: String,
    run_name: String,
    params: Vec<(String, String)>,
    tags: Vec<(String, String)>,
    /// Whether a run may have been made there without our hearing of it.
    may_be_there: bool,
}

/// What tells the run from all others: `mlflow.json`.
#[derive(Clone, Debug, PartialEq)]
struct Identity {
    address: String,
    experiment: String,
    /// Chosen here, before the run is made.
    key: String,
    /// Chosen by the server.
    run_id: Option<String>,
}

impl Identity {
    fn new(address: &str, experiment: &str) -> Self {
        Self {
            address: address.to_owned(),
            experiment: experiment.to_owned(),
            // The standard library's hashers are keyed at random.
            key: format!("{:016x}", RandomState::new().hash_one(clock::now())),
            run_id: None,
        }
    }

    /// As it was written; nothing if it is not there or nothing of ours.
    fn read(path: &Path) -> Option<Self> {
        let written: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let text = |key: &str| Some(written[key].as_str()?.to_owned());
        Some(Self {
            address: text("address")?,
            experiment: text("experiment")?,
            key: text("key")?,
            run_id: text("run_id"),
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let text = format!(
            "{:#}\n",
            json!({
                "address": self.address,
                "experiment": self.experiment,
                "key": self.key,
                "run_id": self.run_id,
            })
        );
        write_atomically(path, |file| file.write_all(text.as_bytes()))
    }
}

impl Opening {
    pub(super) fn new(
        path: PathBuf,
        address: &str,
        experiment: String,
        run_name: String,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
    ) -> Self {
        // A run cannot move to another server or another experiment.
        let known = Identity::read(&path)
            .filter(|known| known.address == address && known.experiment == experiment);
        Self {
            path,
            may_be_there: known.is_some(),
            identity: known.unwrap_or_else(|| Identity::new(address, &experiment)),
            experiment,
            run_name,
            params: names::params(params),
            tags: tags
                .into_iter()
                .map(|(key, value)| (key, names::tag(&value)))
                .collect(),
        }
    }

    /// Has the run be there and running, with its parameters. Returns its id.
    /// After a failure it can be asked again. What a user should know is added
    /// to `notes`.
    pub(super) fn open(
        &mut self,
        client: &Client,
        notes: &mut Vec<String>,
    ) -> Result<String, Failure> {
        if let Some(run_id) = self.identity.run_id.clone() {
            if self.go_on(client, &run_id, notes)? {
                return Ok(run_id);
            }
            notes.push(format!(
                "the MLflow run {run_id} is no longer on the server: another is begun, with what is logged from here \
                 on"
            ));
            self.identity = Identity::new(&self.identity.address, &self.experiment);
            self.may_be_there = false;
        }
        let experiment_id = self.experiment_id(client)?;
        if self.may_be_there
            && let Some(run_id) = self.find(client, &experiment_id)?
        {
            self.identity.run_id = Some(run_id.clone());
            self.write_identity(notes);
            self.go_on(client, &run_id, notes)?;
            return Ok(run_id);
        }
        if !self.may_be_there {
            self.write_identity(notes);
        }
        self.may_be_there = true;
        let run_id = self.create(client, &experiment_id)?;
        self.identity.run_id = Some(run_id.clone());
        self.write_identity(notes);
        let params: Vec<_> = self.params.iter().collect();
        describe(client, &run_id, &params, &[], notes)?;
        Ok(run_id)
    }

    /// Goes on with a run that was made earlier, unless it has been deleted.
    fn go_on(
        &self,
        client: &Client,
        run_id: &str,
        notes: &mut Vec<String>,
    ) -> Result<bool, Failure> {
        let run = match client.get("runs/get", &[("run_id", run_id)]) {
            Err(failure) if failure.is_missing() => return Ok(false),
            run => run?,
        };
        let run = &run["run"];
        if run["info"]["lifecycle_stage"] == "deleted" {
            return Ok(false);
        }
        client.post(
            "runs/update",
            &json!({ "run_id": run_id, "status": "RUNNING" }),
        )?;
        let known = run["data"]["params"].as_array().into_iter().flatten();
        let known: HashMap<_, _> = known
            .filter_map(|param| Some((param["key"].as_str()?, param["value"].as_str()?)))
            .collect();
        let mut new = Vec::new();
        let mut changed = Vec::new();
        for param in &self.params {
            match known.get(param.0.as_str()) {
                None => new.push(param),
                Some(value) if *value == param.1 => {}
                Some(_) => changed.push((format!("{RESUMED}{}", param.0), names::tag(&param.1))),
            }
        }
        describe(client, run_id, &new, &changed, notes)?;
        Ok(true)
    }

    /// The experiment's id. It is made where it is missing.
    fn experiment_id(&self, client: &Client) -> Result<String, Failure> {
        let name = self.experiment.as_str();
        let by_name = || client.get("experiments/get-by-name", &[("experiment_name", name)]);
        let found = match by_name() {
            Err(failure) if failure.is_missing() => {
                match client.post("experiments/create", &json!({ "name": name })) {
                    Ok(made) => return text(&made["experiment_id"], "experiments/create"),
                    // Another run has made it meanwhile.
                    Err(failure) if failure.is_there_already() => by_name()?,
                    Err(failure) => return Err(failure),
                }
            }
            found => found?,
        };
        let found = &found["experiment"];
        if found["lifecycle_stage"] == "deleted" {
            return Err(Failure::Away(format!(
                "its experiment `{name}` is deleted: restore it there, or name another"
            )));
        }
        text(&found["experiment_id"], "experiments/get-by-name")
    }

    /// The run that was made with our key, if one was.
    fn find(&self, client: &Client, experiment_id: &str) -> Result<Option<String>, Failure> {
        let found = client.post(
            "runs/search",
            &json!({
                "experiment_ids": [experiment_id],
                "filter": format!("tags.`{KEY}` = '{}'", self.identity.key),
                "max_results": 1,
            }),
        )?;
        let run_id = found["runs"][0]["info"]["run_id"].as_str();
        Ok(run_id.map(str::to_owned))
    }

    fn create(&self, client: &Client, experiment_id: &str) -> Result<String, Failure> {
        let key = (KEY.to_owned(), self.identity.key.clone());
        let name = ("mlflow.runName".to_owned(), self.run_name.clone());
        let tags = self.tags.iter().chain([&key, &name]);
        let made = client.post(
            "runs/create",
            &json!({
                "experiment_id": experiment_id,
                "run_name": self.run_name,
                "start_time": clock::milliseconds(),
                "tags": tags.map(pair).collect::<Vec<_>>(),
            }),
        )?;
        text(&made["run"]["info"]["run_id"], "runs/create")
    }

    fn write_identity(&self, notes: &mut Vec<String>) {
        if let Err(error) = self.identity.write(&self.path) {
            notes.push(format!(
                "{} cannot be written, {error}: a run that is resumed will be another one on the MLflow server",
                self.path.display()
            ));
        }
    }
}

/// Has the run end there.
pub(super) fn end(client: &Client, run_id: &str, status: Status) -> Result<(), Failure> {
    let body = json!({
        "run_id": run_id,
        "status": status.name(),
        "end_time": clock::milliseconds(),
    });
    client.post("runs/update", &body).map(|_| ())
}

/// Sends parameters and tags. Those that are refused are told, and left.
fn describe(
    client: &Client,
    run_id: &str,
    params: &[&(String, String)],
    tags: &[(String, String)],
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let params = params.chunks(MOST_PARAMS).map(|params| {
        let params: Vec<_> = params.iter().map(|param| pair(param)).collect();
        json!({ "run_id": run_id, "params": params })
    });
    let tags = tags
        .chunks(MOST_PARAMS)
        .map(|tags| json!({ "run_id": run_id, "tags": tags.iter().map(pair).collect::<Vec<_>>() }));
    for body in params.chain(tags) {
        match client.post("runs/log-batch", &body) {
            Err(Failure::Refused { reason, .. }) => notes.push(format!(
                "the MLflow server does not take the run's parameters: {reason}"
            )),
            answer => drop(answer?),
        }
    }
    Ok(())
}

fn pair((key, value): &(String, String)) -> Value {
    json!({ "key": key, "value": value })
}

/// A text that an answer must have.
fn text(value: &Value, what: &str) -> Result<String, Failure> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| {
        Failure::Away(format!(
            "its answer to {what} is not MLflow's: something else is there"
        ))
    })
}
