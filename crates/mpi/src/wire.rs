//! MPI's calls, as far as they are needed: bytes to and from ranks, none of
//! which waits. All of them are made on the thread that has initialised MPI.

use std::{
    ffi::{c_char, c_int, c_void},
    marker::PhantomData,
    ptr,
    sync::Arc,
};

use mpi_sys as sys;

/// Bytes of one message; a count is a C `int`.
const CHUNK: usize = 1 << 30;

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Control = 1,
    Gather = 2,
    Trade = 3,
}

/// All processes. Not to be moved to another thread.
pub(crate) struct World {
    pub(crate) rank: usize,
    pub(crate) n_ranks: usize,
    /// The machine's name.
    pub(crate) host: String,
    /// MPI was asked for calls of one thread alone.
    _of_one_thread: PhantomData<*const ()>,
}

#[expect(
    clippy::unused_self,
    reason = "a world shows that MPI is initialised, on this thread"
)]
impl World {
    /// Initialises MPI, once in a process.
    pub(crate) fn new() -> Result<Self, String> {
        let mut provided: c_int = 0;
        let (mut rank, mut n_ranks): (c_int, c_int) = (0, 0);
        let mut name = [0_u8; sys::MPI_MAX_PROCESSOR_NAME as usize + 1];
        let mut length: c_int = 0;
        // SAFETY: the pointers are to values of the right type that outlive the calls; MPI allows
        // null for the arguments of the command line; the name has room for the longest one. The
        // calls after the first are made only if it succeeded.
        unsafe {
            checked(sys::MPI_Init_thread(
                ptr::null_mut(),
                ptr::null_mut(),
                sys::RSMPI_THREAD_FUNNELED,
                &raw mut provided,
            ))?;
            // A failure is ours to tell, rather than MPI's to end the process for.
            checked(sys::MPI_Comm_set_errhandler(
                sys::RSMPI_COMM_WORLD,
                sys::RSMPI_ERRORS_RETURN,
            ))?;
            checked(sys::MPI_Comm_rank(sys::RSMPI_COMM_WORLD, &raw mut rank))?;
            checked(sys::MPI_Comm_size(sys::RSMPI_COMM_WORLD, &raw mut n_ranks))?;
            checked(sys::MPI_Get_processor_name(
                name.as_mut_ptr().cast::<c_char>(),
                &raw mut length,
            ))?;
        }
        if provided < thread_funneled() {
            return Err("this MPI was built without support for threads".to_owned());
        }
        let host = &name[..(length as usize).min(name.len())];
        Ok(Self {
            rank: rank as usize,
            n_ranks: n_ranks as usize,
            host: String::from_utf8_lossy(host).into_owned(),
            _of_one_thread: PhantomData,
        })
    }

    /// Begins to send bytes.
    pub(crate) fn send(&self, bytes: Kept, to: usize, tag: Tag) -> Result<Flight, String> {
        let mut flight = Flight::new(bytes);
        let slice = flight.kept.bytes();
        let (start, length) = (slice.as_ptr(), slice.len());
        for at in chunks(length) {
            let mut request = null_request();
            // SAFETY: the bytes are kept by the flight until the request has completed, or for ever
            // if it never does; nobody writes to them.
            checked(unsafe {
                sys::MPI_Isend(
                    start.add(at.start).cast::<c_void>(),
                    at.len() as c_int,
                    sys::RSMPI_UINT8_T,
                    to as c_int,
                    tag as c_int,
                    sys::RSMPI_COMM_WORLD,
                    &raw mut request,
                )
            })?;
            flight.requests.push(request);
        }
        Ok(flight)
    }

    /// Begins to receive bytes, which are as many as there is room for.
    pub(crate) fn receive(&self, into: Kept, from: usize, tag: Tag) -> Result<Flight, String> {
        let mut flight = Flight::new(into);
        let slice = flight.kept.bytes_mut();
        let (start, length) = (slice.as_mut_ptr(), slice.len());
        for at in chunks(length) {
            let mut request = null_request();
            // SAFETY: the room is kept by the flight until the request has completed, or for ever if
            // it never does; nobody else reads or writes it, as `into_kept` is for what has
            // completed.
            checked(unsafe {
                sys::MPI_Irecv(
                    start.add(at.start).cast::<c_void>(),
                    at.len() as c_int,
                    sys::RSMPI_UINT8_T,
                    from as c_int,
                    tag as c_int,
                    sys::RSMPI_COMM_WORLD,
                    &raw mut request,
                )
            })?;
            flight.requests.push(request);
        }
        Ok(flight)
    }

    /// Whether a message is there: from whom, and of how many bytes.
    pub(crate) fn waiting(
        &self,
        from: Option<usize>,
        tag: Tag,
    ) -> Result<Option<(usize, usize)>, String> {
        let (mut flag, mut count): (c_int, c_int) = (0, 0);
        // SAFETY: a status of zeros is a valid one, being of integers; the pointers are to values
        // that outlive the calls. The status is read only after the call has filled it.
        unsafe {
            let mut status: sys::MPI_Status = std::mem::zeroed();
            let from = from.map_or(sys::RSMPI_ANY_SOURCE, |from| from as c_int);
            checked(sys::MPI_Iprobe(
                from,
                tag as c_int,
                sys::RSMPI_COMM_WORLD,
                &raw mut flag,
                &raw mut status,
            ))?;
            if flag == 0 {
                return Ok(None);
            }
            checked(sys::MPI_Get_count(
                &raw const status,
                sys::RSMPI_UINT8_T,
                &raw mut count,
            ))?;
            Ok(Some((status.MPI_SOURCE as usize, count as usize)))
        }
    }

    /// Ends MPI; every process has to. Waits for all of them.
    pub(crate) fn finalize(self) -> Result<(), String> {
        // SAFETY: MPI was initialised by this thread, and nothing uses it after.
        checked(unsafe { sys::MPI_Finalize() })
    }
}

fn thread_funneled() -> c_int {
    // SAFETY: a constant of the C shim.
    unsafe { sys::RSMPI_THREAD_FUNNELED }
}

fn null_request() -> sys::MPI_Request {
    // SAFETY: a constant of the C shim.
    unsafe { sys::RSMPI_REQUEST_NULL }
}

/// What is sent or received, and stays where it is meanwhile.
#[derive(Debug)]
pub(crate) enum Kept {
    Bytes(Vec<u8>),
    Room(Vec<f32>),
    Slice(Arc<Vec<f32>>, std::ops::Range<usize>),
}

impl Kept {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Room(values) => bytemuck::cast_slice(values),
            Self::Slice(values, range) => bytemuck::cast_slice(&values[range.clone()]),
        }
    }

    /// Nothing of what is shared.
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Room(values) => bytemuck::cast_slice_mut(values),
            Self::Slice(..) => &mut [],
        }
    }
}

/// Messages on their way.
#[derive(Debug)]
pub(crate) struct Flight {
    requests: Vec<sys::MPI_Request>,
    kept: Kept,
    landed: bool,
}

impl Flight {
    fn new(kept: Kept) -> Self {
        Self {
            requests: Vec::new(),
            kept,
            landed: false,
        }
    }

    /// Whether all has been sent or received. Lets MPI make progress.
    pub(crate) fn landed(&mut self, _world: &World) -> Result<bool, String> {
        if self.landed {
            return Ok(true);
        }
        let mut flag: c_int = 0;
        // SAFETY: the requests are those that MPI gave, on this thread, as the world shows, and no
        // status is asked for.
        checked(unsafe {
            sys::MPI_Testall(
                self.requests.len() as c_int,
                self.requests.as_mut_ptr(),
                &raw mut flag,
                sys::RSMPI_STATUSES_IGNORE,
            )
        })?;
        self.landed = flag != 0;
        Ok(self.landed)
    }

    /// What was received; nothing if it is still on its way.
    pub(crate) fn into_kept(mut self) -> Kept {
        if self.landed {
            std::mem::replace(&mut self.kept, Kept::Bytes(Vec::new()))
        } else {
            Kept::Bytes(Vec::new())
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed && !self.requests.is_empty() {
            // MPI may still read or write there. The process is about to end.
            std::mem::forget(std::mem::replace(&mut self.kept, Kept::Bytes(Vec::new())));
        }
    }
}

/// A message of no bytes is one, too.
fn chunks(length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let n = length.div_ceil(CHUNK).max(1);
    (0..n).map(move |i| i * CHUNK..((i + 1) * CHUNK).min(length))
}

fn checked(code: c_int) -> Result<(), String> {
    if code == sys::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0_u8; sys::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: there is room for the longest text.
    let told =
        unsafe { sys::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    if told != sys::MPI_SUCCESS as c_int {
        return Err(format!("MPI's error {code}"));
    }
    let text = &text[..(length as usize).min(text.len())];
    Err(String::from_utf8_lossy(text).into_owned())
}
