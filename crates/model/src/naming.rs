//! What a family's checkpoints call the parts of the one decoder.
//!
//! The decoder's fields have LLaMA's names. Where a family's checkpoints have
//! others, [`Named`] passes those on to whoever walks through the modules, so
//! that a parameter's path is its name in the file: for loading and saving, for
//! adapters and their targets, for errors.

use std::ops::{Deref, DerefMut};

use burn::{
    module::{
        Content, Devices, Flag, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
        ModuleVisitor, Param,
    },
    tensor::{Bool, Device, Int, Tensor},
};

/// What the checkpoints of a family call the decoder's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming {
    /// A level above the decoder's parts that is no field.
    pub(crate) above: Option<&'static str>,
    /// For each field that is called otherwise, what the file calls the part;
    /// `None` if the file has no such level, and the part's own parts are its
    /// holder's.
    pub(crate) parts: &'static [(&'static str, Option<&'static str>)],
}

impl Naming {
    /// The names of the fields.
    pub(crate) const LLAMA: Self = Self {
        above: None,
        parts: &[],
    };

    /// What the file calls the part that is the field `ours`; `None` if it has
    /// no such level, as it has none for the variants of an enum.
    fn of<'a>(self, ours: &'a str, container_type: &str) -> Option<&'a str> {
        if ours == PROJECTIONS || container_type.starts_with("Enum:") {
            return None;
        }
        let renamed = self.parts.iter().find(|(field, _)| *field == ours);
        renamed.map_or(Some(ours), |(_, name)| *name)
    }
}

/// The field of [`Attention`](crate::Attention) that is no level of any file.
const PROJECTIONS: &str = "projections";

/// A module whose parts have the names that its family's checkpoints give them.
#[derive(Clone, Debug)]
pub struct Named<M> {
    module: M,
    naming: Naming,
}

impl<M> Named<M> {
    pub(crate) fn new(module: M, naming: Naming) -> Self {
        Self { module, naming }
    }
}

impl<M> Deref for Named<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.module
    }
}

impl<M> DerefMut for Named<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.module
    }
}

/// The type that visitors are told holds the level that is no field.
const CONTAINER: &str = "Struct:Named";

impl<M: Module> Module for Named<M> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if let Some(above) = self.naming.above {
            visitor.enter_module(above, CONTAINER);
        }
        self.module.visit(&mut Renaming {
            inner: visitor,
            naming: self.naming,
        });
        if let Some(above) = self.naming.above {
            visitor.exit_module(above, CONTAINER);
        }
    }

    fn map<V: ModuleMapper>(self, mapper: &mut V) -> Self {
        let naming = self.naming;
        if let Some(above) = naming.above {
            mapper.enter_module(above, CONTAINER);
        }
        let module = self.module.map(&mut Renaming {
            inner: mapper,
            naming,
        });
        if let Some(above) = naming.above {
            mapper.exit_module(above, CONTAINER);
        }
        Self { module, naming }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.module.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        Self {
            module: self.module.fork(device),
            ..self
        }
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            module: self.module.to_device(device),
            ..self
        }
    }

    fn valid(&self) -> Self {
        Self {
            module: self.module.valid(),
            naming: self.naming,
        }
    }

    fn train(self) -> Self {
        Self {
            module: self.module.train(),
            ..self
        }
    }

    fn materialize(self) -> Self {
        Self {
            module: self.module.materialize(),
            ..self
        }
    }
}

impl<M: ModuleDisplay + Module> ModuleDisplayDefault for Named<M> {
    fn content(&self, content: Content) -> Option<Content> {
        self.module.content(content)
    }

    fn num_params(&self) -> usize {
        Module::num_params(&self.module)
    }
}

impl<M: ModuleDisplay + Module> ModuleDisplay for Named<M> {}

/// Hands everything on to `inner`, under the file's names.
struct Renaming<'a, T> {
    inner: &'a mut T,
    naming: Naming,
}

impl<V: ModuleVisitor> ModuleVisitor for Renaming<'_, V> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if let Some(name) = self.naming.of(name, container_type) {
            self.inner.enter_module(name, container_type);
        }
    }

    fn exit_module(&mut self, name: &str, container_type: &str) {
        if let Some(name) = self.naming.of(name, container_type) {
            self.inner.exit_module(name, container_type);
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit_float(param);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.inner.visit_int(param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.inner.visit_bool(param);
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        self.inner.visit_flag(flag);
    }
}

impl<V: ModuleMapper> ModuleMapper for Renaming<'_, V> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if let Some(name) = self.naming.of(name, container_type) {
            self.inner.enter_module(name, container_type);
        }
    }

    fn exit_module(&mut self, name: &str, container_type: &str) {
        if let Some(name) = self.naming.of(name, container_type) {
            self.inner.exit_module(name, container_type);
        }
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map_float(param)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.inner.map_int(param)
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        self.inner.map_bool(param)
    }

    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.inner.map_flag(flag)
    }
}
