//! `[logging]`: programs that show a run while it goes on.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use olora_loggers::check_address;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::bounds::{Problems, has_control};

/// The keys.
const KEYS: [&str; 2] = ["tensorboard", "mlflow"];

/// `[logging]`. What is logged is the same whatever is in it, and so is what is
/// trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoggingSection {
    /// Event files of TensorBoard.
    #[serde(skip_serializing_if = "TensorBoard::is_off")]
    pub tensorboard: TensorBoard,
    /// A run on a tracking server of MLflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<MlflowSection>,
}

impl LoggingSection {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Adds everything that cannot be meant.
    pub(super) fn check(&self, problems: &mut Problems) {
        if let TensorBoard::In(directory) = &self.tensorboard {
            let text = directory.to_string_lossy();
            problems.check(
                !text.trim().is_empty() && !has_control(&text),
                "`logging.tensorboard` must be true, for a directory in the run's, or the path of a directory, without \
                 line breaks and other control characters",
            );
        }
        let Some(mlflow) = &self.mlflow else {
            return;
        };
        if let Some(Err(reason)) = mlflow.uri.as_deref().map(check_address) {
            problems.0.push(format!("`logging.mlflow` {reason}"));
        }
        if let Some(experiment) = &mlflow.experiment {
            problems.check(
                !experiment.trim().is_empty() && !has_control(experiment),
                "`logging.mlflow.experiment` must be a name, without line breaks and other control characters",
            );
        }
    }
}

/// By hand, so that what others have in its place is refused in words.
impl<'de> Deserialize<'de> for LoggingSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Section;
        impl<'de> Visitor<'de> for Section {
            type Value = LoggingSection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with `tensorboard` or `mlflow`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LoggingSection, A::Error> {
                let mut section = LoggingSection::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "tensorboard" => section.tensorboard = map.next_value()?,
                        "mlflow" => section.mlflow = map.next_value::<Mlflow>()?.0,
                        "wandb" | "trackio" | "comet" | "neptune" | "clearml" | "swanlab" => {
                            return Err(Error::custom(format!(
                                "`{key}` is not supported. `tensorboard = true` writes event files, and `mlflow = \
                                 \"http://…\"` sends to a tracking server; `metrics.jsonl` in the run's directory has \
                                 every value, a line for each step, for scripts of your own"
                            )));
                        }
                        other => return Err(Error::unknown_field(other, &KEYS)),
                    }
                }
                Ok(section)
            }
        }
        deserializer.deserialize_map(Section)
    }
}

/// Where event files go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TensorBoard {
    /// Nowhere: there are none.
    #[default]
    Off,
    /// Into `tensorboard` in the run's directory.
    RunDirectory,
    /// Into a directory of the run's name in this one, beside those of other
    /// runs.
    In(PathBuf),
}

impl TensorBoard {
    pub(crate) fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// Where those of a run go.
    pub(crate) fn directory(&self, run: &Path, name: &str) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::RunDirectory => Some(run.join(KEYS[0])),
            Self::In(directory) => Some(directory.join(name)),
        }
    }
}

impl Serialize for TensorBoard {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::RunDirectory => serializer.serialize_bool(true),
            Self::In(directory) => directory.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TensorBoard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = TensorBoard;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or the path of a directory")
            }

            fn visit_bool<E: Error>(self, on: bool) -> Result<TensorBoard, E> {
                Ok(if on {
                    TensorBoard::RunDirectory
                } else {
                    TensorBoard::Off
                })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TensorBoard, E> {
                match as_bool(text) {
                    Some(on) => self.visit_bool(on),
                    None => Ok(TensorBoard::In(PathBuf::from(text))),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// `mlflow = …`: true, an address, or a table of both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MlflowSection {
    /// The tracking server's address; that of `MLFLOW_TRACKING_URI` if not given.
    pub uri: Option<String>,
    /// The experiment's name; that of `MLFLOW_EXPERIMENT_NAME`, else `Default`, if
    /// not given.
    pub experiment: Option<String>,
}

/// The long form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experiment: Option<String>,
}

impl Serialize for MlflowSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (&self.uri, &self.experiment) {
            (None, None) => serializer.serialize_bool(true),
            (Some(uri), None) => serializer.serialize_str(uri),
            (uri, experiment) => Table {
                uri: uri.clone(),
                experiment: experiment.clone(),
            }
            .serialize(serializer),
        }
    }
}

/// What is written, which may be that there is none.
struct Mlflow(Option<MlflowSection>);

impl<'de> Deserialize<'de> for Mlflow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Mlflow;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, the address of a tracking server, or a table with `uri` or `experiment`")
            }

            fn visit_bool<E: Error>(self, on: bool) -> Result<Mlflow, E> {
                Ok(Mlflow(on.then(MlflowSection::default)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Mlflow, E> {
                match as_bool(text) {
                    Some(on) => self.visit_bool(on),
                    None => Ok(Mlflow(Some(MlflowSection {
                        uri: Some(text.to_owned()),
                        experiment: None,
                    }))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mlflow, A::Error> {
                let Table { uri, experiment } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Mlflow(Some(MlflowSection { uri, experiment })))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// `--set logging.mlflow=false` is a text where the recipe has one.
fn as_bool(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;

    const MINIMAL: &str = r#"
        name = "run"
        [model]
        path = "base"
        [data]
        train = "train.jsonl"
    "#;

    fn with(logging: &str, overrides: &[&str]) -> Result<Recipe, String> {
        let text = format!("{MINIMAL}\n[logging]\n{logging}\n");
        let overrides: Vec<_> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Recipe::parse(&text, "recipe.toml", &overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_is_kept_in_the_resolved_recipe() {
        let of_all = MlflowSection {
            uri: Some("http://127.0.0.1:5000".to_owned()),
            experiment: Some("village".to_owned()),
        };
        let of_uri = MlflowSection {
            experiment: None,
            ..of_all.clone()
        };
        let of_experiment = MlflowSection {
            uri: None,
            ..of_all.clone()
        };
        let here = TensorBoard::RunDirectory;
        let there = TensorBoard::In("logs".into());
        for (logging, tensorboard, mlflow) in [
            ("tensorboard = true", here, None),
            ("tensorboard = \"logs\"", there, None),
            (
                "mlflow = true",
                TensorBoard::Off,
                Some(MlflowSection::default()),
            ),
            (
                "mlflow = \"http://127.0.0.1:5000\"",
                TensorBoard::Off,
                Some(of_uri),
            ),
            (
                "mlflow = { experiment = \"village\" }",
                TensorBoard::Off,
                Some(of_experiment),
            ),
            (
                "mlflow = { uri = \"http://127.0.0.1:5000\", experiment = \"village\" }\ntensorboard = true",
                TensorBoard::RunDirectory,
                Some(of_all),
            ),
        ] {
            let recipe = with(logging, &[]).unwrap();
            assert_eq!(recipe.logging.tensorboard, tensorboard, "{logging}");
            assert_eq!(recipe.logging.mlflow, mlflow, "{logging}");
            let resolved = recipe.to_toml().unwrap();
            let again = Recipe::parse(&resolved, "resolved", &[]).unwrap();
            assert_eq!(again, recipe, "{resolved}");
            // A comparison keeps recipes in JSON.
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
        }
    }

    #[test]
    fn what_is_switched_off_is_as_if_it_were_not_there() {
        let on = "tensorboard = \"logs\"\nmlflow = \"http://127.0.0.1:5000\"";
        let off = ["logging.tensorboard=false", "logging.mlflow=false"];
        let recipe = with(on, &off).unwrap();
        assert!(recipe.logging.is_default(), "{:?}", recipe.logging);
        assert!(!recipe.to_toml().unwrap().contains("logging"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (logging, expected) in [
            ("wandb = true", "`wandb` is not supported"),
            ("trackio = \"project\"", "`trackio` is not supported"),
            ("tensorbord = true", "unknown field `tensorbord`"),
            ("tensorboard = 3", "expected true, false, or the path"),
            ("tensorboard = \"\"", "`logging.tensorboard`"),
            (
                "mlflow = \"sqlite:///mlflow.db\"",
                "`logging.mlflow` begins with `sqlite:`",
            ),
            (
                "mlflow = \"file:///mlruns\"",
                "`logging.mlflow` begins with `file:`",
            ),
            ("mlflow = \"./mlruns\"", "`logging.mlflow` is no address"),
            (
                "mlflow = \"http://me:hush@host\"",
                "`logging.mlflow` holds a name or a password",
            ),
            ("mlflow = { url = \"http://host\" }", "unknown field `url`"),
            (
                "mlflow = { experiment = \"\" }",
                "`logging.mlflow.experiment`",
            ),
        ] {
            let message = with(logging, &[]).unwrap_err();
            assert!(message.contains(expected), "{logging}: {message}");
        }
    }

    #[test]
    fn each_run_has_a_directory_of_its_own() {
        let of = |form: TensorBoard| form.directory(Path::new("runs/mine"), "mine");
        assert_eq!(of(TensorBoard::Off), None);
        assert_eq!(
            of(TensorBoard::RunDirectory).unwrap(),
            Path::new("runs/mine/tensorboard")
        );
        assert_eq!(
            of(TensorBoard::In("logs".into())).unwrap(),
            Path::new("logs/mine")
        );
    }
}
