//! The C interface of libchdb (ClickHouse as a library, 26.7), bound at run time, and nothing else: types whose
//! lifetimes keep what C asks for in comments.
//!
//! One engine lives in a process, on one data folder; connections to it are sessions with settings of their own. A
//! connection runs one statement at a time, which `&mut self` enforces.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    marker::PhantomData,
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    sync::{Mutex, PoisonError},
};

use libloading::Library;

/// Why the library cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("cannot load {}: run `cargo xtask setup`, or name libchdb.so in HOLDFAST_LIBCHDB", path.display())]
    Load {
        path: PathBuf,
        source: libloading::Error,
    },
    #[error(
        "{} is no libchdb that Holdfast can use, it lacks {symbol}: run `cargo xtask setup`, or name a libchdb.so \
         of 26.7 or later in HOLDFAST_LIBCHDB",
        path.display()
    )]
    Symbol { path: PathBuf, symbol: &'static str },
    #[error("{} is loaded already, this process cannot use {} as well", loaded.display(), path.display())]
    Other { loaded: PathBuf, path: PathBuf },
}

/// A statement's failure, in ClickHouse's own words.
#[derive(Debug)]
pub struct EngineError(pub String);

/// `chdb_connection`.
type RawConnection = *mut c_void;
/// `chdb_result *`.
type RawResult = *mut c_void;
/// `chdb_insert_stream`.
type RawInsert = *mut c_void;

/// `chdb_query_analysis_v1`.
#[repr(C)]
struct RawAnalysis {
    struct_size: u32,
    statement_count: u32,
    flags: u32,
    query_class: u32,
}

/// `CHDB_QUERY_READ_ONLY`: SELECT, SHOW, DESCRIBE, EXPLAIN.
const QUERY_READ_ONLY: u32 = 0;

/// `CHDBSuccess`.
const SUCCESS: c_int = 0;

/// Names and values of parameters, as the C interface takes them. Points into the strings it was made of.
struct RawParams<'strings> {
    names: Vec<*const c_char>,
    name_lens: Vec<usize>,
    values: Vec<*const c_char>,
    value_lens: Vec<usize>,
    strings: PhantomData<&'strings str>,
}

impl<'strings> RawParams<'strings> {
    fn of(params: &'strings [(String, String)]) -> Self {
        Self {
            names: params.iter().map(|(name, _)| name.as_ptr().cast()).collect(),
            name_lens: params.iter().map(|(name, _)| name.len()).collect(),
            values: params.iter().map(|(_, value)| value.as_ptr().cast()).collect(),
            value_lens: params.iter().map(|(_, value)| value.len()).collect(),
            strings: PhantomData,
        }
    }
}

/// Declares the functions that are used, and loads them all or names the one that is missing.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $returns:ty)?;)*) => {
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) $(-> $returns)?,)* }

        impl Functions {
            /// # Safety
            /// `library` must be a libchdb and stay loaded for as long as the functions are called.
            unsafe fn load(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the types are those of chdb.h (26.7), which the caller vouches for.
                        let symbol = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *symbol.map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }
    };
}

functions! {
    chdb_stream_insert_n: fn(RawConnection, *const c_char, usize, *const c_char, usize) -> RawInsert;
    chdb_stream_append: fn(RawInsert, *const c_void, usize) -> c_int;
    chdb_stream_done: fn(RawInsert) -> RawResult;
    chdb_stream_insert_error: fn(RawInsert) -> *const c_char;
    chdb_destroy_insert_stream: fn(RawInsert);
    chdb_set_signal_handlers_enabled: fn(c_int);
    chdb_connect: fn(c_int, *mut *mut c_char) -> *mut RawConnection;
    chdb_close_conn: fn(*mut RawConnection);
    chdb_query_with_params_n: fn(
        RawConnection, *const c_char, usize, *const c_char, usize,
        *const *const c_char, *const usize, *const *const c_char, *const usize, usize
    ) -> RawResult;
    chdb_stream_query_with_params_n: fn(
        RawConnection, *const c_char, usize, *const c_char, usize,
        *const *const c_char, *const usize, *const *const c_char, *const usize, usize
    ) -> RawResult;
    chdb_stream_fetch_result: fn(RawConnection, RawResult) -> RawResult;
    chdb_stream_cancel_query: fn(RawConnection, RawResult);
    chdb_destroy_query_result: fn(RawResult);
    chdb_result_buffer: fn(RawResult) -> *const u8;
    chdb_result_length: fn(RawResult) -> usize;
    chdb_result_error: fn(RawResult) -> *const c_char;
    chdb_classify_query_n: fn(RawConnection, *const c_char, usize, *const c_char, usize, *mut RawAnalysis) -> c_int;
}

/// The library, loaded. It is never unloaded: the engine's threads run its code until the process ends.
pub struct Chdb {
    path: PathBuf,
    functions: Functions,
}

/// Loaded once per process: a second copy would be a second engine over the same globals.
static LOADED: Mutex<Option<&'static Chdb>> = Mutex::new(None);

impl Chdb {
    /// Loads the library, or hands out the one that is loaded.
    pub fn load(path: &Path) -> Result<&'static Self, LibraryError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chdb) = *loaded {
            if chdb.path == path {
                return Ok(chdb);
            }
            return Err(LibraryError::Other {
                loaded: chdb.path.clone(),
                path: path.to_owned(),
            });
        }
        // SAFETY: loading runs the library's constructors. It is the file that the operator named or that `xtask
        // setup` verified by its checksum; trusting it is what using the embedded store means.
        let library = unsafe { Library::new(path) }.map_err(|source| LibraryError::Load {
            path: path.to_owned(),
            source,
        })?;
        // SAFETY: a library that exports all of these names is libchdb, and `forget` below keeps it loaded.
        let functions = unsafe { Functions::load(&library) }.map_err(|symbol| LibraryError::Symbol {
            path: path.to_owned(),
            symbol,
        })?;
        std::mem::forget(library);
        // SAFETY: no connection exists yet, which is when chdb.h wants this called. Signals stay the collector's.
        unsafe { (functions.chdb_set_signal_handlers_enabled)(0) };
        let chdb: &'static Self = Box::leak(Box::new(Self {
            path: path.to_owned(),
            functions,
        }));
        *loaded = Some(chdb);
        Ok(chdb)
    }

    /// From now on the process ends without the library's global destructors: they would pull memory away under the
    /// engine's threads, which run until the end, and most exits would be segmentation faults. What has to be durable is
    /// so when its insert returns. Handlers run in the reverse order of their registration, and the engine makes more of those
    /// objects as it is used: call this once it is up, and again when it is closed.
    pub fn skip_destructors_at_exit(&self) {
        extern "C" fn end_now(status: c_int, _: *mut c_void) {
            // SAFETY: has no preconditions. Rust has flushed its output before the C library's exit handlers run.
            unsafe { libc::_exit(status) }
        }
        type OnExit = unsafe extern "C" fn(extern "C" fn(c_int, *mut c_void), *mut c_void) -> c_int;
        let process = libloading::os::unix::Library::this();
        // SAFETY: the type is that of on_exit(3). It is glibc's alone, and so is libchdb.
        if let Ok(on_exit) = unsafe { process.get::<OnExit>(b"on_exit\0") } {
            // SAFETY: the handler is a function of this program, which is never unloaded, and takes no argument.
            unsafe { on_exit(end_now, ptr::null_mut()) };
        }
    }

    /// Opens a connection; the first one starts the engine. `arguments` are `--path=...` and settings.
    ///
    /// Gives `None` if the engine refuses, for which the C interface has no words: the folder is another process's,
    /// or this process has the engine open on another folder, or a setting is unknown.
    pub fn connect(&'static self, arguments: &[String]) -> Option<Connection> {
        let arguments: Vec<CString> = std::iter::once("holdfast")
            .chain(arguments.iter().map(String::as_str))
            .map(CString::new)
            .collect::<Result<_, _>>()
            .ok()?;
        let mut pointers: Vec<*mut c_char> = arguments.iter().map(|text| text.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(pointers.len()).ok()?;
        // SAFETY: `pointers` are `count` terminated strings that live through the call; the engine copies them and
        // does not write to them.
        let handle = NonNull::new(unsafe { (self.functions.chdb_connect)(count, pointers.as_mut_ptr()) })?;
        let connection = Connection { chdb: self, handle };
        // SAFETY: the handle points at the connection until it is closed.
        let raw = unsafe { *handle.as_ptr() };
        (!raw.is_null()).then_some(connection)
    }
}

/// A session with the engine.
pub struct Connection {
    chdb: &'static Chdb,
    handle: NonNull<RawConnection>,
}

// SAFETY: chdb.h calls queries and closing thread-safe; a connection is bound to no thread, and `&mut self` on every
// method that runs something serialises what runs on it.
unsafe impl Send for Connection {}

impl Connection {
    fn raw(&self) -> RawConnection {
        // SAFETY: `handle` came from `chdb_connect` and is closed only in `drop`.
        unsafe { *self.handle.as_ptr() }
    }

    /// Runs a statement to its end, and gives its whole answer.
    pub fn execute(
        &mut self,
        sql: &str,
        format: &str,
        params: &[(String, String)],
    ) -> Result<Vec<u8>, EngineError> {
        let params = RawParams::of(params);
        // SAFETY: pointers and lengths are those of live strings, which the engine copies; the four arrays of
        // `params` have the same length.
        let result = unsafe {
            (self.chdb.functions.chdb_query_with_params_n)(
                self.raw(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                params.names.as_ptr(),
                params.name_lens.as_ptr(),
                params.values.as_ptr(),
                params.value_lens.as_ptr(),
                params.names.len(),
            )
        };
        self.chdb.take(result)
    }

    /// Makes `data`, in `format`, durable in the table of `sql` (`INSERT INTO t (a, b)`). The data never meets the
    /// SQL parser.
    pub fn insert(&mut self, sql: &str, format: &str, data: &[u8]) -> Result<(), EngineError> {
        let functions = &self.chdb.functions;
        // SAFETY: as in `execute`.
        let stream = unsafe {
            (functions.chdb_stream_insert_n)(
                self.raw(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
            )
        };
        let insert = Insert {
            chdb: self.chdb,
            stream,
            connection: PhantomData::<&mut Self>,
        };
        insert.check()?;
        // SAFETY: the stream is open; the engine copies the bytes.
        if unsafe { (functions.chdb_stream_append)(insert.stream, data.as_ptr().cast(), data.len()) }
            != SUCCESS
        {
            insert.check()?;
            return Err(EngineError("the insert ended early".into()));
        }
        // SAFETY: the stream is open; this closes it and gives a result of its own, which `take` destroys.
        let result = unsafe { (functions.chdb_stream_done)(insert.stream) };
        self.chdb.take(result)?;
        Ok(())
    }

    /// Starts a SELECT whose answer is fetched in parts. The engine streams no other statements.
    pub fn start(
        &mut self,
        sql: &str,
        format: &str,
        params: &[(String, String)],
    ) -> Result<Answer<'_>, EngineError> {
        let params = RawParams::of(params);
        // SAFETY: as in `execute`.
        let result = unsafe {
            (self.chdb.functions.chdb_stream_query_with_params_n)(
                self.raw(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                params.names.as_ptr(),
                params.name_lens.as_ptr(),
                params.values.as_ptr(),
                params.value_lens.as_ptr(),
                params.names.len(),
            )
        };
        if let Some(error) = self.chdb.error_of(result) {
            // SAFETY: the result is ours and is not used again.
            unsafe { (self.chdb.functions.chdb_destroy_query_result)(result) };
            return Err(error);
        }
        Ok(Answer {
            connection: self,
            result,
            ended: false,
        })
    }

    /// Lets go of what a statement holds that failed or was cancelled: the engine keeps it, also in
    /// `system.processes`, until the next statement of its connection.
    pub fn settle(&mut self) {
        // Whatever comes of it, it was the next statement.
        let _ = self.execute("SELECT 1", "Null", &[]);
    }

    /// What `sql` is, by the engine's own parser, without running any of it. The parser does not see what functions do.
    pub fn classify(&mut self, sql: &str) -> Result<Classified, EngineError> {
        let mut analysis = RawAnalysis {
            struct_size: u32::try_from(size_of::<RawAnalysis>()).unwrap_or(u32::MAX),
            statement_count: 0,
            flags: 0,
            query_class: 0,
        };
        // SAFETY: as in `execute`; no target database is given, and the engine writes at most `struct_size` bytes.
        let state = unsafe {
            (self.chdb.functions.chdb_classify_query_n)(
                self.raw(),
                sql.as_ptr().cast(),
                sql.len(),
                ptr::null(),
                0,
                &raw mut analysis,
            )
        };
        if state != SUCCESS {
            return Err(EngineError("the engine could not analyse the statement".into()));
        }
        Ok(match (analysis.statement_count, analysis.query_class) {
            (0, _) => Classified::Unparsable,
            (1, QUERY_READ_ONLY) => Classified::Reads,
            (1, _) => Classified::DoesMore,
            _ => Classified::Several,
        })
    }
}

/// What the engine's parser says of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classified {
    Reads,
    DoesMore,
    Several,
    /// Nothing, or no SQL.
    Unparsable,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: `handle` came from `chdb_connect`, nothing else closes it, and nothing borrows the connection.
        unsafe { (self.chdb.functions.chdb_close_conn)(self.handle.as_ptr()) };
    }
}

/// An open streaming insert. One that is dropped before its end is cancelled by the engine.
struct Insert<'connection> {
    chdb: &'static Chdb,
    stream: RawInsert,
    connection: PhantomData<&'connection mut Connection>,
}

impl Insert<'_> {
    fn check(&self) -> Result<(), EngineError> {
        // SAFETY: the stream is not destroyed yet; the text belongs to it and is copied before.
        unsafe { text((self.chdb.functions.chdb_stream_insert_error)(self.stream)) }
            .map_or(Ok(()), |message| Err(EngineError(message)))
    }
}

impl Drop for Insert<'_> {
    fn drop(&mut self) {
        // SAFETY: every handle is destroyed once, also after an error or the end (chdb.h); this is the only place.
        unsafe { (self.chdb.functions.chdb_destroy_insert_stream)(self.stream) };
    }
}

/// An answer that is fetched in parts. Dropping it cancels the statement, once the part that is being computed is
/// done; the connection is to be settled then.
pub struct Answer<'connection> {
    connection: &'connection mut Connection,
    result: RawResult,
    ended: bool,
}

impl Answer<'_> {
    /// The next part; `None` at the end. After an error there is nothing more to fetch.
    pub fn fetch(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        if self.ended {
            return Ok(None);
        }
        let chdb = self.connection.chdb;
        // SAFETY: the result belongs to this connection and is destroyed only in `drop`.
        let part = unsafe { (chdb.functions.chdb_stream_fetch_result)(self.connection.raw(), self.result) };
        let part = chdb.take(part)?;
        self.ended = part.is_empty();
        Ok((!self.ended).then_some(part))
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let functions = &self.connection.chdb.functions;
        // SAFETY: the result belongs to this connection; it is cancelled at most once, destroyed once, and not used
        // after.
        unsafe {
            if !self.ended {
                (functions.chdb_stream_cancel_query)(self.connection.raw(), self.result);
            }
            (functions.chdb_destroy_query_result)(self.result);
        }
    }
}

impl Chdb {
    /// Copies a result and destroys it.
    fn take(&self, result: RawResult) -> Result<Vec<u8>, EngineError> {
        if let Some(error) = self.error_of(result) {
            if !result.is_null() {
                // SAFETY: the result is ours and is not used again.
                unsafe { (self.functions.chdb_destroy_query_result)(result) };
            }
            return Err(error);
        }
        // SAFETY: the buffer belongs to the result, has the length that the result says, and is copied before the
        // result is destroyed. An empty result may have no buffer.
        unsafe {
            let (data, length) = (
                (self.functions.chdb_result_buffer)(result),
                (self.functions.chdb_result_length)(result),
            );
            let copy = if data.is_null() || length == 0 {
                Vec::new()
            } else {
                std::slice::from_raw_parts(data, length).to_vec()
            };
            (self.functions.chdb_destroy_query_result)(result);
            Ok(copy)
        }
    }

    fn error_of(&self, result: RawResult) -> Option<EngineError> {
        if result.is_null() {
            return Some(EngineError("the engine gave no result".into()));
        }
        // SAFETY: the result is not null and not destroyed; the text belongs to it and is copied.
        unsafe { text((self.functions.chdb_result_error)(result)) }.map(EngineError)
    }
}

/// # Safety
/// `pointer` must be null or a terminated string.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: by the contract above.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_it_and_the_way_out() {
        let error = Chdb::load(Path::new("/nowhere/libchdb.so"))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("/nowhere/libchdb.so") && error.contains("cargo xtask setup"),
            "{error}"
        );
        assert!(error.contains("HOLDFAST_LIBCHDB"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no library").unwrap();
        let error = Chdb::load(file.path()).err().unwrap().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn a_library_without_the_streaming_insert_is_refused() {
        let error = Chdb::load(Path::new("libc.so.6")).err().unwrap().to_string();
        assert!(
            error.contains("lacks chdb_stream_insert_n") && error.contains("cargo xtask setup"),
            "{error}"
        );
    }
}
