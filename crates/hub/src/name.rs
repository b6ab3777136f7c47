//! What a user writes as a model, told apart.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::HubError;

/// A model as a user names it.
///
/// | written | meaning |
/// |---|---|
/// | `path/to/directory` | a checkpoint's directory |
/// | `path/to/file.gguf` | one GGUF file |
/// | `owner/name` | a repository of the hub, at `main` |
/// | `owner/name@revision` | at a branch, a tag or a commit |
/// | `owner/name:file.gguf` | one GGUF file of a repository |
/// | `owner/name@revision:file.gguf` | both |
///
/// A local path that exists always wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelName {
    /// A directory that exists.
    Directory(PathBuf),
    /// A `.gguf` file that exists.
    Gguf(PathBuf),
    /// A repository of the hub, or one file of it. Not looked up yet.
    Hub(HubName),
}

/// A repository of the hub, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`.
    pub repository: String,
    /// The branch, tag or commit that was asked for, if any.
    pub revision: Option<String>,
    /// The one `.gguf` file that was asked for, if any: its path in the repository.
    pub file: Option<String>,
}

impl HubName {
    /// The branch, tag or commit to look up: `main` unless another was asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            kind: RepositoryKind::Model,
            repository: self.repository.clone(),
            revision: self.revision().to_owned(),
            shown: self.to_string(),
        }
    }
}

/// What a repository of the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl RepositoryKind {
    /// The word for it in messages.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }

    /// What can be given in its place, in words.
    pub(crate) fn local(self) -> &'static str {
        match self {
            Self::Model => "a local directory or .gguf file",
            Self::Dataset => "a local file or directory",
        }
    }

    /// Its name in the addresses of the API and in the cache.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What precedes `owner/name` in the addresses of pages and files.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// One revision of one repository.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) kind: RepositoryKind,
    /// `owner/name`.
    pub(crate) repository: String,
    pub(crate) revision: String,
    /// What the user wrote, for messages.
    pub(crate) shown: String,
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

impl ModelName {
    /// Tells a local path and a name of the hub apart. Looks at the file
    /// system, never at the network.
    ///
    /// # Errors
    ///
    /// [`HubError::NoSuchPath`] for what looks like a path (it starts with
    /// `/`, `.` or `~`, has a backslash or more than one slash, or ends in
    /// `.gguf`) but does not exist; [`HubError::NotAModel`] for a file that is
    /// not GGUF; [`HubError::BadName`] for what is neither a path nor a
    /// possible name.
    pub fn parse(spec: &str) -> Result<Self, HubError> {
        let path = Path::new(spec);
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if path.exists() {
            return if is_gguf(spec) {
                Ok(Self::Gguf(path.to_owned()))
            } else {
                Err(HubError::NotAModel(path.to_owned()))
            };
        }
        if let Some(hint) = path_hint(spec) {
            return Err(HubError::NoSuchPath {
                path: path.to_owned(),
                hint,
            });
        }
        parse_hub(spec)
            .map(Self::Hub)
            .map_err(|reason| HubError::BadName {
                spec: spec.to_owned(),
                reason,
            })
    }
}

fn is_gguf(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Splits off `@revision` and `:file`, of which a revision may hold slashes and
/// a file may hold anything.
fn split(spec: &str) -> (&str, Option<&str>, Option<&str>) {
    let (head, file) = match spec.split_once(':') {
        Some((head, file)) => (head, Some(file)),
        None => (spec, None),
    };
    match head.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision), file),
        None => (head, None, file),
    }
}

/// What to tell someone whose path does not exist, if it was meant as a path.
fn path_hint(spec: &str) -> Option<&'static str> {
    const PLAIN: &str = "Check the spelling and the current directory";
    if spec.starts_with("http://") || spec.starts_with("https://") {
        return Some("A model of the hub is written without the address, as `owner/name`");
    }
    if spec.starts_with('~') {
        return Some(
            "`~` is expanded by the shell, not inside quotes or a file: write the whole path",
        );
    }
    let (repository, _, file) = split(spec);
    let path_like = spec.starts_with(['/', '.'])
        || spec.contains('\\')
        || repository.matches('/').count() > 1
        || (file.is_none() && is_gguf(spec) && spec.contains('/'));
    if path_like {
        return Some(PLAIN);
    }
    (!repository.contains('/')).then_some(
        "A model of the hub is written with its owner, as `owner/name`; \
         a local one as the path of its directory or of a .gguf file",
    )
}

fn parse_hub(spec: &str) -> Result<HubName, String> {
    let (repository, revision, file) = split(spec);
    check_repository(repository)?;
    if let Some(revision) = revision
        && !is_inside(revision)
    {
        return Err(format!(
            "`{revision}`, after the @, is not a possible branch, tag or commit"
        ));
    }
    if let Some(file) = file {
        if !is_gguf(file) {
            return Err(format!(
                "`{file}`, after the colon, is not a .gguf file; \
                 without the colon, the whole checkpoint is used"
            ));
        }
        if !is_inside(file) {
            return Err(format!(
                "`{file}`, after the colon, is not a possible file of a repository"
            ));
        }
    }
    Ok(HubName {
        repository: repository.to_owned(),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    })
}

/// Whether this can be an `owner/name`.
pub(crate) fn check_repository(repository: &str) -> Result<(), String> {
    let good_part = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            // `--` separates owner and name in the cache, `..` leads out of it.
            && !part.contains("--")
            && !part.contains("..")
    };
    if repository.split('/').all(good_part) {
        return Ok(());
    }
    Err(format!(
        "`{repository}` is not a possible `owner/name`: \
         both consist of letters, digits, `-`, `_` and `.`"
    ))
}

/// Whether a relative path of a repository stays inside the directory that it
/// is joined to, on every platform.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.contains(['\\', ':'])
        && !path.contains(char::is_control)
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(spec: &str) -> (String, Option<String>, Option<String>) {
        match ModelName::parse(spec) {
            Ok(ModelName::Hub(name)) => {
                assert_eq!(name.to_string(), spec);
                (name.repository, name.revision, name.file)
            }
            other => panic!("{spec}: {other:?}"),
        }
    }

    #[test]
    fn every_form_of_a_hub_name_is_taken_apart() {
        let some = |text: &str| Some(text.to_owned());
        let name = "no-such-owner/a.name_1".to_owned();
        assert_eq!(hub("no-such-owner/a.name_1"), (name.clone(), None, None));
        assert_eq!(
            hub("no-such-owner/a.name_1@refs/pr/7"),
            (name.clone(), some("refs/pr/7"), None)
        );
        assert_eq!(
            hub("no-such-owner/a.name_1:Q4/m@1.gguf"),
            (name.clone(), None, some("Q4/m@1.gguf"))
        );
        assert_eq!(
            hub("no-such-owner/a.name_1@v1:m.gguf"),
            (name, some("v1"), some("m.gguf"))
        );
    }

    #[test]
    fn what_exists_wins_over_the_hub() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("{}/{name}", directory.path().display());
        std::fs::create_dir(path("org@v1:x")).unwrap();
        std::fs::write(path("m.GGUF"), b"GGUF").unwrap();
        std::fs::write(path("notes.txt"), b"").unwrap();
        assert!(matches!(
            ModelName::parse(&path("org@v1:x")),
            Ok(ModelName::Directory(_))
        ));
        assert!(matches!(
            ModelName::parse(&path("m.GGUF")),
            Ok(ModelName::Gguf(_))
        ));
        let error = ModelName::parse(&path("notes.txt")).unwrap_err();
        assert!(matches!(error, HubError::NotAModel(_)), "{error}");
    }

    #[test]
    fn what_looks_like_a_path_is_never_a_hub_name() {
        for spec in [
            "./owner/name",
            "../name",
            "/owner/name",
            "~/models/name",
            "a/b/c",
            "owner/name/",
            "owner\\name",
            "C:\\models\\name",
            "models/name.gguf",
            "SmolLM2-135M",
            "name@main",
            "https://huggingface.co/owner/name",
            "",
        ] {
            let error = ModelName::parse(spec).unwrap_err();
            assert!(
                matches!(error, HubError::NoSuchPath { .. }),
                "{spec}: {error}"
            );
        }
    }

    #[test]
    fn the_hint_fits_the_mistake() {
        let message = |spec| ModelName::parse(spec).unwrap_err().to_string();
        assert!(message("SmolLM2-135M").contains("`owner/name`"));
        assert!(message("~/m").contains("expanded by the shell"));
        assert!(message("https://huggingface.co/o/n").contains("without the address"));
        assert!(message("./m").contains("current directory"));
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for (spec, part) in [
            ("owner/na me", "na me"),
            ("owner/a--b", "a--b"),
            ("owner/..", ".."),
            ("owner/name@", "after the @"),
            ("owner/name@../../x", "after the @"),
            ("owner/name:model.safetensors", "not a .gguf"),
            ("owner/name:../m.gguf", "after the colon"),
            ("owner/name:/m.gguf", "after the colon"),
        ] {
            let error = ModelName::parse(spec).unwrap_err();
            assert!(matches!(error, HubError::BadName { .. }), "{spec}: {error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
