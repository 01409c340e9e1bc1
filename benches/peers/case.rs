//! One entry of the registry: an id of the contract, and how to get ready for it.

/// What the command line says about how to run a case.
pub struct Context {
    /// Threads that the work may use, the caller's included.
    pub threads: usize,
}

/// The work in the clock.
pub type Call = Box<dyn FnMut()>;

/// A case of the contract.
pub struct Case {
    id: String,
    smoke: bool,
    prepare: Box<dyn Fn(&Context) -> Result<Call, String>>,
}

impl Case {
    /// `prepare` makes inputs, constants and buffers, checks the result of a first call, and returns the call to time.
    pub fn new(id: impl Into<String>, prepare: impl Fn(&Context) -> Result<Call, String> + 'static) -> Self {
        Self { id: id.into(), smoke: false, prepare: Box::new(prepare) }
    }

    /// Small enough for a debug build.
    pub fn smoke(mut self) -> Self {
        self.smoke = true;
        self
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn is_smoke(&self) -> bool {
        self.smoke
    }

    pub fn prepare(&self, context: &Context) -> Result<Call, String> {
        (self.prepare)(context)
    }
}
