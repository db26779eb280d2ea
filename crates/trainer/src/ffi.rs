//! The only unsafe code of the engine: the C++ shim over libtorch's dispatcher and autograd engine, and
//! views of tensors' memory. Everything exported here is safe to call.
#![allow(unsafe_code)]

pub(crate) mod products;

use bastionai_graph::typed::Number;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};
use tch::{Kind, Tensor};

/// Mirrors `BastionArgument` of shim.h.
#[repr(C)]
struct RawArgument {
    kind: i32,
    count: i32,
    integer: i64,
    number: f64,
    data: *const c_void,
}

unsafe extern "C" {
    fn bastion_setup(threads: i32) -> i32;
    fn bastion_denormals_flushed(flushed: *mut i32) -> i32;
    fn bastion_prefer_fast_f32(fast: i32) -> i32;
    fn bastion_use_flash_attention(use_it: i32) -> i32;
    fn bastion_backward_on_default_kernels(tensor: *const c_void) -> i32;
    fn bastion_find(name: *const c_char, overload: *const c_char, operator: *mut *mut c_void) -> i32;
    fn bastion_release(operator: *mut c_void);
    fn bastion_schema(operator: *const c_void, text: *mut c_char, capacity: usize) -> i32;
    fn bastion_call(
        operator: *const c_void,
        arguments: *const RawArgument,
        argument_count: usize,
        outputs: *mut *mut c_void,
        output_count: usize,
    ) -> i32;
    fn bastion_recurrence(
        cell: i64,
        reverse: i32,
        gates: *const c_void,
        recurrent: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        h0: *const c_void,
        c0: *const c_void,
        outputs: *mut *mut c_void,
        output_count: usize,
    ) -> i32;
    fn bastion_convolution_lanes() -> i32;
    fn bastion_window_product(product: *const RawWindowProduct);
    fn bastion_parallel(
        tasks: usize,
        body: unsafe extern "C" fn(*const c_void, usize),
        context: *const c_void,
    ) -> i32;
    fn bastion_edge(tensor: *const c_void, edge: *mut *mut c_void) -> i32;
    fn bastion_release_edge(edge: *mut c_void);
    fn bastion_backward(
        root: *const c_void,
        root_gradient: *const c_void,
        edges: *const *mut c_void,
        edge_count: usize,
        keep_graph: i32,
        gradients: *mut *mut c_void,
    ) -> i32;
    fn bastion_version(tensor: *const c_void, version: *mut u64) -> i32;
    fn bastion_place(tensor: *const c_void, device: i32, placed: *mut *mut c_void) -> i32;
    fn bastion_place_beside(tensor: *const c_void, other: *const c_void, placed: *mut *mut c_void) -> i32;
    fn bastion_start_cuda(memory_bytes: *mut u64, free_bytes: *mut u64) -> i32;
    fn bastion_last_error(text: *mut c_char, capacity: usize);
}

/// Longest schema string of ATen is under 1 KiB.
const SCHEMA_CAPACITY: usize = 8192;
const ERROR_CAPACITY: usize = 2048;
const OK: i32 = 0;
const UNKNOWN_OPERATOR: i32 = 2;

/// A call into libtorch failed; the text stays with libtorch until [`last_error`] is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed;

fn succeed(status: i32) -> Result<(), Failed> {
    if status == OK { Ok(()) } else { Err(Failed) }
}

/// The text of the last failure on this thread. It may quote values: see [`crate::EngineError::detail`].
pub(crate) fn last_error() -> String {
    let mut text = vec![0 as c_char; ERROR_CAPACITY];
    // SAFETY: the shim writes at most `capacity` bytes, ending in a zero.
    unsafe {
        bastion_last_error(text.as_mut_ptr(), text.len());
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

/// Sets threads, flushes denormals on all of them (G6), fills uninitialised memory, silences warnings.
pub(crate) fn setup(threads: i32) -> Result<(), Failed> {
    // SAFETY: takes a plain integer and catches every exception.
    succeed(unsafe { bastion_setup(threads) })
}

/// Keeps freed memory for the next tensor. A step frees and asks for the same large blocks again and again; given back
/// to the system each time, a fifth of a ResNet's step went to zeroing their pages.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator, before other threads are there; it refuses what it cannot take.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// What the allocator has given out and not got back, in bytes; zero where it does not tell.
pub(crate) fn allocated_bytes() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes nothing and only counts.
        let counted = unsafe { libc::mallinfo2() };
        (counted.uordblks + counted.hblkhd) as u64
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Whether every worker thread flushes denormals.
pub(crate) fn denormals_flushed() -> Result<bool, Failed> {
    let mut flushed = 0;
    // SAFETY: the pointer is to a live i32.
    succeed(unsafe { bastion_denormals_flushed(&mut flushed) })?;
    Ok(flushed == 1)
}

/// Chooses libtorch's f32 matrix kernels: its default, or what `float32_matmul_precision = "medium"` selects.
pub(crate) fn prefer_fast_f32(fast: bool) -> Result<(), Failed> {
    // SAFETY: takes a plain integer and catches every exception.
    succeed(unsafe { bastion_prefer_fast_f32(i32::from(fast)) })
}

/// The backward pass of the operator that made this tensor runs on libtorch's default f32 kernels, whatever is chosen.
pub(crate) fn backward_on_default_kernels(tensor: &Tensor) -> Result<(), Failed> {
    // SAFETY: the pointer is to a live tensor; the shim keeps none and catches every exception.
    succeed(unsafe { bastion_backward_on_default_kernels(tensor.as_ptr().cast()) })
}

/// Whether `scaled_dot_product_attention` may take its flash kernel; otherwise it is composed of products.
pub(crate) fn use_flash_attention(use_it: bool) -> Result<(), Failed> {
    // SAFETY: takes a plain integer and catches every exception.
    succeed(unsafe { bastion_use_flash_attention(i32::from(use_it)) })
}

/// An ATen operator, found by name and overload.
pub(crate) struct Operator(NonNull<c_void>);

// SAFETY: an OperatorHandle is an immutable reference into the dispatcher's table.
unsafe impl Send for Operator {}
// SAFETY: as above; calls take it by const reference.
unsafe impl Sync for Operator {}

impl Drop for Operator {
    fn drop(&mut self) {
        // SAFETY: made by bastion_find and released once.
        unsafe { bastion_release(self.0.as_ptr()) }
    }
}

/// One argument of a call.
pub(crate) enum CallArgument<'a> {
    None,
    Tensor(&'a Tensor),
    Tensors(Vec<&'a Tensor>),
    OptionalTensors(Vec<Option<&'a Tensor>>),
    Int(i64),
    Ints(&'a [i64]),
    Float(f64),
    Floats(&'a [f64]),
    Bool(bool),
    Bools(&'a [bool]),
    Str(&'a str),
    DType(i64),
    Number(Number),
    /// c10's number of a device type.
    Device(i32),
}

fn pointer(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr().cast()
}

impl CallArgument<'_> {
    /// Pointers of a list of tensors, which must outlive the call.
    fn pointers(&self) -> Vec<*const c_void> {
        match self {
            Self::Tensors(list) => list.iter().map(|tensor| pointer(tensor)).collect(),
            Self::OptionalTensors(list) => list.iter().map(|item| item.map_or(null(), pointer)).collect(),
            _ => Vec::new(),
        }
    }

    fn raw(&self, pointers: &[*const c_void]) -> RawArgument {
        let scalar = |kind, integer, number| RawArgument {
            kind,
            count: 0,
            integer,
            number,
            data: null(),
        };
        let list = |kind, count: usize, data| RawArgument {
            kind,
            count: count as i32,
            integer: 0,
            number: 0.0,
            data,
        };
        match self {
            Self::None => scalar(0, 0, 0.0),
            Self::Tensor(tensor) => list(1, 1, pointer(tensor)),
            Self::Tensors(_) => list(2, pointers.len(), pointers.as_ptr().cast()),
            Self::OptionalTensors(_) => list(3, pointers.len(), pointers.as_ptr().cast()),
            Self::Int(value) => scalar(4, *value, 0.0),
            Self::Ints(values) => list(5, values.len(), values.as_ptr().cast()),
            Self::Float(value) => scalar(6, 0, *value),
            Self::Floats(values) => list(7, values.len(), values.as_ptr().cast()),
            Self::Bool(value) => scalar(8, i64::from(*value), 0.0),
            Self::Bools(values) => list(9, values.len(), values.as_ptr().cast()),
            Self::Str(text) => list(10, text.len(), text.as_ptr().cast()),
            Self::DType(code) => scalar(11, *code, 0.0),
            Self::Number(Number::Int(value)) => scalar(12, *value, 0.0),
            Self::Number(Number::Float(bits)) => scalar(13, 0, bits.get()),
            Self::Number(Number::Bool(value)) => scalar(14, i64::from(*value), 0.0),
            Self::Device(number) => scalar(15, i64::from(*number), 0.0),
        }
    }
}

impl Operator {
    /// Finds `aten::{name}`; `None` when this libtorch has no such operator and overload.
    pub(crate) fn find(name: &str, overload: &str) -> Result<Option<Self>, Failed> {
        let name = CString::new(format!("aten::{name}")).map_err(|_| Failed)?;
        let overload = CString::new(if overload == "default" { "" } else { overload }).map_err(|_| Failed)?;
        let mut handle = null_mut();
        // SAFETY: both strings end in a zero and outlive the call.
        let status = unsafe { bastion_find(name.as_ptr(), overload.as_ptr(), &mut handle) };
        if status == UNKNOWN_OPERATOR {
            return Ok(None);
        }
        succeed(status)?;
        NonNull::new(handle)
            .map(|handle| Some(Self(handle)))
            .ok_or(Failed)
    }

    /// The schema as libtorch prints it.
    pub(crate) fn schema(&self) -> Result<String, Failed> {
        let mut text = vec![0 as c_char; SCHEMA_CAPACITY];
        // SAFETY: the shim writes at most `capacity` bytes, ending in a zero.
        succeed(unsafe { bastion_schema(self.0.as_ptr(), text.as_mut_ptr(), text.len()) })?;
        // SAFETY: ends in a zero, as above.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }
            .to_string_lossy()
            .into_owned())
    }

    /// Calls the operator through the dispatcher. Arguments are checked against its schema in the shim.
    pub(crate) fn call(
        &self,
        arguments: &[CallArgument<'_>],
        output_count: usize,
    ) -> Result<Vec<Tensor>, Failed> {
        let pointers: Vec<_> = arguments.iter().map(CallArgument::pointers).collect();
        let raw: Vec<_> = arguments
            .iter()
            .zip(&pointers)
            .map(|(argument, list)| argument.raw(list))
            .collect();
        let mut outputs = vec![null_mut(); output_count];
        // SAFETY: every pointer in `raw` is into `arguments` or `pointers`, which outlive the call; the shim
        // checks kinds and counts against the schema, and writes `output_count` owned tensors only on success.
        succeed(unsafe {
            bastion_call(
                self.0.as_ptr(),
                raw.as_ptr(),
                raw.len(),
                outputs.as_mut_ptr(),
                outputs.len(),
            )
        })?;
        Ok(outputs.into_iter().map(owned).collect())
    }
}

fn owned(pointer: *mut c_void) -> Tensor {
    // SAFETY: the shim made it with `new at::Tensor`, as tch's own functions do; ownership passes here.
    unsafe { Tensor::from_ptr(pointer.cast()) }
}

/// One direction of one recurrent layer over its input's projections, as shim/recurrence.h says.
pub(crate) struct Recurrence<'t> {
    /// The shim's number of the cell.
    pub(crate) cell: i64,
    /// Whether the last step is the first.
    pub(crate) reverse: bool,
    /// `[rows, steps, gates]`. Its memory is taken over: nobody may read it afterwards.
    pub(crate) gates: &'t Tensor,
    pub(crate) recurrent: Option<&'t Tensor>,
    pub(crate) weight: &'t Tensor,
    pub(crate) bias: Option<&'t Tensor>,
    pub(crate) h0: &'t Tensor,
    /// Of LSTM.
    pub(crate) c0: Option<&'t Tensor>,
}

/// All outputs, the last, and LSTM's last cell state.
pub(crate) fn recurrence(of: &Recurrence<'_>) -> Result<Vec<Tensor>, Failed> {
    let optional = |tensor: Option<&Tensor>| tensor.map_or(null(), pointer);
    let mut outputs = vec![null_mut(); if of.c0.is_some() { 3 } else { 2 }];
    // SAFETY: every tensor is alive for the call; the shim checks their shapes, types and memory before it touches
    // any, and writes as many owned tensors as there are slots only on success.
    succeed(unsafe {
        bastion_recurrence(
            of.cell,
            i32::from(of.reverse),
            pointer(of.gates),
            optional(of.recurrent),
            pointer(of.weight),
            optional(of.bias),
            pointer(of.h0),
            optional(of.c0),
            outputs.as_mut_ptr(),
            outputs.len(),
        )
    })?;
    Ok(outputs.into_iter().map(owned).collect())
}

/// Mirrors `BastionWindowProduct` of convolution.h.
#[repr(C)]
struct RawWindowProduct {
    lanes: i32,
    plain: *const f32,
    plain_stride: i64,
    rows: i64,
    positions: i64,
    source: *const f32,
    starts: *const i32,
    slots: *const Slot,
    slot_count: i64,
    target: *mut f32,
    width: i64,
    packed: *mut f32,
    add: i32,
    squares: *mut f64,
}

/// Lanes of f32 vectors that there are kernels for.
pub(crate) const MOST_LANES: usize = 16;
const FEWEST_LANES: usize = 8;

/// Neighbouring columns of unfolded rows. Mirrors `BastionSlot` of convolution.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slot {
    /// Of the first of them from the start of a row.
    pub(crate) offset: i32,
    /// The first column of the result that they are.
    pub(crate) column: i32,
    /// At most the product's.
    pub(crate) lanes: i32,
}

/// `target[r][column] (+)= Σ_t plain[r][t]·source[starts[t] + offset]`, as convolution.h says.
pub(crate) struct WindowProduct<'a> {
    /// Of the vectors: 16 or 8, and no more than [`convolution_lanes`].
    pub(crate) lanes: usize,
    /// `[rows, positions]`, `plain_stride` elements from row to row.
    pub(crate) plain: &'a [f32],
    pub(crate) plain_stride: usize,
    pub(crate) rows: usize,
    /// Readable for [`MOST_LANES`] elements from any start and offset.
    pub(crate) source: &'a [f32],
    /// One for each position.
    pub(crate) starts: &'a [i32],
    pub(crate) slots: &'a [Slot],
    /// `[rows, width]`.
    pub(crate) target: &'a mut [f32],
    /// Room for `rows · positions`.
    pub(crate) packed: &'a mut [f32],
    /// Whether there is something in the target to add to.
    pub(crate) add: bool,
    /// Whether the result is done, and its squares are wanted.
    pub(crate) is_last: bool,
}

/// Lanes of the widest vectors of this machine; 0 where there is no kernel for it.
pub(crate) fn convolution_lanes() -> usize {
    // SAFETY: takes nothing and only asks what the processor has.
    let lanes = unsafe { bastion_convolution_lanes() };
    usize::try_from(lanes).unwrap_or(0)
}

/// Makes the product; the sum of the squares of the result, in f64, if it is done.
///
/// # Panics
/// When a slice is too short for what is asked of it.
pub(crate) fn window_product(product: WindowProduct<'_>) -> f64 {
    let (rows, positions) = (product.rows, product.starts.len());
    assert!(rows > 0 && positions > 0);
    let width = product.target.len() / rows;
    let whole = |value: i32| usize::try_from(value).expect("no offset is negative");
    let farthest = |values: &mut dyn Iterator<Item = i32>| values.map(whole).max().unwrap_or(0);
    let slots = || product.slots.iter();
    let source =
        farthest(&mut product.starts.iter().copied()) + farthest(&mut slots().map(|slot| slot.offset));
    assert!([FEWEST_LANES, MOST_LANES].contains(&product.lanes) && product.lanes <= convolution_lanes());
    assert!(farthest(&mut slots().map(|slot| slot.lanes)) <= product.lanes);
    assert!(slots().all(|slot| whole(slot.column) + whole(slot.lanes) <= width));
    assert!(source + MOST_LANES <= product.source.len() && rows * positions <= product.packed.len());
    assert!((rows - 1) * product.plain_stride + positions <= product.plain.len());
    let mut squares = 0.0;
    let raw = RawWindowProduct {
        lanes: product.lanes as i32,
        plain: product.plain.as_ptr(),
        plain_stride: product.plain_stride as i64,
        rows: rows as i64,
        positions: positions as i64,
        source: product.source.as_ptr(),
        starts: product.starts.as_ptr(),
        slots: product.slots.as_ptr(),
        slot_count: product.slots.len() as i64,
        target: product.target.as_mut_ptr(),
        width: width as i64,
        packed: product.packed.as_mut_ptr(),
        add: i32::from(product.add),
        squares: if product.is_last { &mut squares } else { null_mut() },
    };
    // SAFETY: every element that the kernel reads or writes lies in one of the slices, by the assertions above; the
    // two that it writes are borrowed for it alone.
    unsafe { bastion_window_product(&raw) };
    squares
}

/// Runs tasks `0..tasks` on libtorch's threads, the caller's among them. When it fails some may not have been run.
pub(crate) fn parallel(tasks: usize, body: &(dyn Fn(usize) + Sync)) -> Result<(), Failed> {
    unsafe extern "C" fn run(context: *const c_void, task: usize) {
        // SAFETY: the context is the reference below, alive until all tasks are done.
        let body = unsafe { *context.cast::<&(dyn Fn(usize) + Sync)>() };
        body(task);
    }
    let context: *const &(dyn Fn(usize) + Sync) = &raw const body;
    // SAFETY: the shim calls `run` with this context, from several threads as `Sync` allows, and returns after the last
    // call. A panic would end the process at the boundary; the caller catches its own.
    succeed(unsafe { bastion_parallel(tasks, run, context.cast()) })
}

/// Where in the autograd graph a value's gradient arrives.
pub(crate) struct Edge(NonNull<c_void>);

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: made by bastion_edge and released once.
        unsafe { bastion_release_edge(self.0.as_ptr()) }
    }
}

impl Edge {
    /// Captured right after the operator that made `tensor`.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self, Failed> {
        let mut edge = null_mut();
        // SAFETY: the tensor is alive; the shim refuses one that needs no gradient.
        succeed(unsafe { bastion_edge(pointer(tensor), &mut edge) })?;
        NonNull::new(edge).map(Self).ok_or(Failed)
    }
}

/// One pass of the autograd engine from `root` to `edges`; `None` where no gradient arrives. Weight
/// gradients are not among the edges, so the engine never computes them. With `keep_graph` the pass can be repeated.
pub(crate) fn backward(
    root: &Tensor,
    root_gradient: &Tensor,
    edges: &[&Edge],
    keep_graph: bool,
) -> Result<Vec<Option<Tensor>>, Failed> {
    let raw: Vec<_> = edges.iter().map(|edge| edge.0.as_ptr()).collect();
    let mut gradients = vec![null_mut(); edges.len()];
    // SAFETY: tensors and edges are alive for the call; `gradients` has one slot for each edge.
    succeed(unsafe {
        bastion_backward(
            pointer(root),
            pointer(root_gradient),
            raw.as_ptr(),
            raw.len(),
            i32::from(keep_graph),
            gradients.as_mut_ptr(),
        )
    })?;
    Ok(gradients
        .into_iter()
        .map(|gradient| {
            if gradient.is_null() {
                None
            } else {
                Some(owned(gradient))
            }
        })
        .collect())
}

/// How often a tensor was written to in place.
pub(crate) fn version(tensor: &Tensor) -> Result<u64, Failed> {
    let mut version = 0;
    // SAFETY: the tensor is alive and the pointer is to a live u64.
    succeed(unsafe { bastion_version(pointer(tensor), &mut version) })?;
    Ok(version)
}

/// The tensor on the first device of this type (c10's number); itself where it is there already.
pub(crate) fn place(tensor: &Tensor, device: i32) -> Result<Tensor, Failed> {
    let mut placed = null_mut();
    // SAFETY: the tensor is alive; the shim writes one owned tensor, only on success.
    succeed(unsafe { bastion_place(pointer(tensor), device, &mut placed) })?;
    Ok(owned(placed))
}

/// The tensor on another's device; itself where it is there already.
pub(crate) fn place_beside(tensor: &Tensor, other: &Tensor) -> Result<Tensor, Failed> {
    let mut placed = null_mut();
    // SAFETY: as for `place`.
    succeed(unsafe { bastion_place_beside(pointer(tensor), pointer(other), &mut placed) })?;
    Ok(owned(placed))
}

/// Starts CUDA with fixed, deterministic, true f32 kernels; the device's memory, all of it and what is free, in bytes.
pub(crate) fn start_cuda() -> Result<[u64; 2], Failed> {
    let (mut memory_bytes, mut free_bytes) = (0, 0);
    // SAFETY: both pointers are to live u64s; the shim catches every exception.
    succeed(unsafe { bastion_start_cuda(&mut memory_bytes, &mut free_bytes) })?;
    Ok([memory_bytes, free_bytes])
}

/// Loads a shared library for the life of this process, its symbols visible to all; the loader's words when it cannot.
pub(crate) fn load_library(path: &Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the string ends in a zero and outlives the call. The library's constructors run: it is one of those that are
    // measured before a run (rule A4).
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: after a failure it points to a string that ends in a zero, until this thread's next call.
    let words = unsafe { libc::dlerror() };
    if words.is_null() {
        return Err("no reason was given".to_owned());
    }
    // SAFETY: as above.
    Err(unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned())
}

/// Element types whose memory is read or written directly.
pub(crate) trait Element: Copy {
    /// libtorch's name of the type.
    const KIND: Kind;
}
impl Element for f32 {
    const KIND: Kind = Kind::Float;
}
impl Element for f64 {
    const KIND: Kind = Kind::Double;
}
impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

/// Runs `body` on the memory of a contiguous CPU tensor; `None` when it is not one, or of another type.
pub(crate) fn read<T: Element, R>(tensor: &Tensor, body: impl FnOnce(&[T]) -> R) -> Option<R> {
    let address = memory::<T>(tensor)?;
    // SAFETY: contiguous memory of numel elements of T, alive while `tensor` is borrowed; `body` gets no
    // handle to write it by, and the engine runs one operator at a time.
    Some(body(unsafe {
        std::slice::from_raw_parts(address, tensor.numel())
    }))
}

/// As [`read`], writable.
pub(crate) fn write<T: Element, R>(tensor: &mut Tensor, body: impl FnOnce(&mut [T]) -> R) -> Option<R> {
    let address = memory::<T>(tensor)?;
    // SAFETY: as for `read`; tensors that share this memory are not touched while `body` runs, since the
    // engine runs one operator at a time and `body` has no handle to another.
    Some(body(unsafe {
        std::slice::from_raw_parts_mut(address, tensor.numel())
    }))
}

/// The memory of a contiguous CPU tensor, to be written; `None` when it is not one, or of another type.
pub(crate) fn elements_mut<T: Element>(tensor: &mut Tensor) -> Option<&mut [T]> {
    let address = memory::<T>(tensor)?;
    // SAFETY: as for `write`; the borrow of the tensor lasts as long as the slice.
    Some(unsafe { std::slice::from_raw_parts_mut(address, tensor.numel()) })
}

/// As [`read`], the bytes of a tensor of any type.
pub(crate) fn read_bytes<R>(tensor: &Tensor, body: impl FnOnce(&[u8]) -> R) -> Option<R> {
    let address: *mut u8 = address(tensor)?;
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    // SAFETY: as for `read`; every byte of an element is initialised, since its type has no padding.
    Some(body(unsafe { std::slice::from_raw_parts(address, bytes) }))
}

/// The bytes of numbers, as this machine orders them.
pub(crate) fn as_bytes<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: the numbers' own memory, borrowed as long as they are; their types have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn memory<T: Element>(tensor: &Tensor) -> Option<*mut T> {
    if !tensor.defined() || tensor.kind() != T::KIND {
        return None;
    }
    address(tensor)
}

/// Where a contiguous CPU tensor begins.
fn address<T>(tensor: &Tensor) -> Option<*mut T> {
    let usable = tensor.defined()
        && !tensor.is_sparse()
        && tensor.device() == tch::Device::Cpu
        && tensor.is_contiguous();
    if !usable {
        return None;
    }
    let address: *mut T = tensor.data_ptr().cast();
    if address.is_null() {
        (tensor.numel() == 0).then(|| NonNull::dangling().as_ptr())
    } else {
        Some(address)
    }
}
