(* The original, Ocamlnet's Netmulticore, on the work of ../src.

     original BENCH WORKERS

   prints the seconds that the work took, how many operations it was, and the
   processor's seconds of the worker that used most.

   The master does nothing; the first process makes the container and starts the
   workers, which begin at one moment and repeat their operation until another.
   OCAMLRUNPARAM=O=1000000 is needed: a compaction of OCaml's own heap takes
   blocks in shared memory for its own. *)

module Process = Netmcore_process
module Heap = Netmcore_heap
module Ref = Netmcore_ref
module Arrays = Netmcore_array
module Matrices = Netmcore_matrix
module Queues = Netmcore_queue
module Buffers = Netmcore_buffer
module Tables = Netmcore_hashtbl
module Box = Netcamlbox
module Pools = Netmcore_mempool
module Mutexes = Netmcore_mutex
module Conditions = Netmcore_condition

let now = Unix.gettimeofday
let cpu () = let t = Unix.times () in t.Unix.tms_utime +. t.Unix.tms_stime
let keep x = ignore (Sys.opaque_identity x)

(* How long the workers work, and how long they get to be ready for it. *)
let working = 0.3
let getting_ready = 0.15

(* What a worker is told. *)
type 'shared job =
  { pool : Netmcore.res_id; shared : 'shared; me : int; workers : int;
    start : float; finish : float }

(* What it answers. *)
type outcome = { operations : int; ended : float; used : float }

let await moment =
  let left = moment -. now () in
  if left > 0.0 then Unix.sleepf left

let timed job work =
  await job.start;
  let before = cpu () in
  let operations = work () in
  { operations; ended = now (); used = cpu () -. before }

(* The clock is read once a batch: [operation] returns how many it has done. *)
let repeat ?(batch = 64) job operation =
  timed job (fun () ->
    let i = ref 0 and done_ = ref 0 in
    while now () < job.finish do
      for k = !i to !i + batch - 1 do done_ := !done_ + operation k done;
      i := !i + batch
    done;
    !done_)

(* A bench: called by the master, where process types are defined; then by the
   first process. [make] makes the container, [work] is a worker's. *)
let bench make work () =
  let fork, join = Process.def_process work in
  fun pool workers ->
    let shared = make pool in
    let start = now () +. getting_ready in
    let run me =
      Process.start ~inherit_resources:`All fork
        { pool; shared; me; workers; start; finish = start +. working } in
    let pids = List.init workers run in
    let outcome pid =
      match Process.join join pid with
        | Some outcome -> outcome
        | None -> failwith "a worker died" in
    let all = List.map outcome pids in
    let most f = List.fold_left (fun a o -> max a (f o)) 0.0 all in
    ( most (fun o -> o.ended) -. start,
      List.fold_left (fun a o -> a + o.operations) 0 all,
      most (fun o -> o.used) )

(* The same by one and by several workers: an operation on a container that the
   worker has found. *)
let simple ?batch make find operation =
  bench make (fun job ->
    let container = find job.pool job.shared in
    repeat ?batch job (fun k -> operation job container k; 1))

(* Single values *)

type record = { number : int; real : float; text : string }

let record number = { number; real = 1.5; text = "hello" }

let cell operation =
  simple
    (fun pool -> Ref.descr_of_sref (Ref.sref pool (record 0)))
    Ref.sref_of_descr (fun _ -> operation)

(* Arrays and matrices of floats *)

let length = 1000 and rows = 100 and columns = 100

let array operation =
  simple
    (fun pool -> Arrays.descr_of_sarray (Arrays.make pool length 0.0 ()))
    Arrays.sarray_of_descr
    (fun _ a k -> operation a (k mod length))

let matrix operation =
  simple
    (fun pool ->
       Matrices.descr_of_sarray2 (Matrices.make pool rows columns 0.0 ()))
    Matrices.sarray2_of_descr
    (fun _ m k -> operation m (k mod rows) (k / rows mod columns))

(* Without copies, which costs next to nothing: all elements one after the other. *)

let array_view =
  bench
    (fun pool -> Arrays.descr_of_sarray (Arrays.make pool length 0.0 ()))
    (fun job ->
       let a = Arrays.sarray_of_descr job.pool job.shared in
       repeat job (fun _ ->
         for i = 0 to length - 1 do keep (Arrays.get_ro a i) done; length))

let matrix_view =
  bench
    (fun pool ->
       Matrices.descr_of_sarray2 (Matrices.make pool rows columns 0.0 ()))
    (fun job ->
       let m = Matrices.sarray2_of_descr job.pool job.shared in
       repeat job (fun _ ->
         for i = 0 to rows - 1 do
           for j = 0 to columns - 1 do keep (Matrices.get_ro m i j) done
         done;
         rows * columns))

(* Heaps: a search tree of objects, each use of it a look or a change of its own *)

type tree =
  | Leaf
  | Node of
      { key : int; mutable value : int;
        mutable left : tree; mutable right : tree }

type root = { mutable top : tree }

let nodes = 1023

let rec planted first behind =
  if first >= behind then Leaf
  else
    let key = first + (behind - first) / 2 in
    Node { key; value = key;
           left = planted first key; right = planted (key + 1) behind }

let heap operation =
  simple
    (fun pool ->
       let root = { top = planted 0 nodes } in
       Heap.descr_of_heap (Heap.create_heap pool (1024 * 1024) root))
    Heap.heap_of_descr
    (fun _ h k -> operation h (k * 0x9e3779b97f4a7c1 land max_int mod nodes) k)

let rec node key = function
  | Leaf -> raise Not_found
  | Node n as found ->
      if n.key = key then found
      else node key (if key < n.key then n.left else n.right)

let heap_view =
  heap (fun h key _ ->
    Heap.with_value h
      (fun () -> node key (Heap.root h).top)
      (function Node n -> keep n.value | Leaf -> ()))

let heap_modify =
  heap (fun h key k ->
    Heap.modify h (fun _ ->
      match node key (Heap.root h).top with
        | Node n -> n.value <- k
        | Leaf -> ()))

(* The old node is garbage; it can be reached until the new one is in its place. *)
let heap_replace =
  heap (fun h key k ->
    Heap.modify h (fun mutator ->
      let rec replace at set =
        match at with
          | Leaf -> ()
          | Node n when n.key = key ->
              let empty = Node { key; value = k; left = Leaf; right = Leaf } in
              let made = Heap.add mutator empty in
              (match made with
                | Node m -> m.left <- n.left; m.right <- n.right
                | Leaf -> ());
              set made
          | Node n when key < n.key -> replace n.left (fun t -> n.left <- t)
          | Node n -> replace n.right (fun t -> n.right <- t) in
      let root = Heap.root h in
      replace root.top (fun t -> root.top <- t)))

(* Blocks of a pool *)

let pool_pair size =
  simple (fun _ -> ()) (fun pool () -> pool)
    (fun _ pool _ -> Pools.free_mem pool (Pools.alloc_mem pool size))

(* Mutexes and conditions: made in the heap of a variable, in place of dummies *)

type meeting =
  { mutable mutex : Mutexes.mutex; conditions : Conditions.condition array;
    mutable waiting : Conditions.wait_set; mutable turn : int }

let meeting kind pool =
  let dummy _ = Conditions.dummy_condition () in
  let variable = Ref.sref pool
    { mutex = Mutexes.dummy (); conditions = Array.init 2 dummy;
      waiting = Conditions.dummy_wait_set (); turn = 0 } in
  Heap.modify (Ref.heap variable) (fun mutator ->
    let m = Ref.deref_ro variable in
    m.mutex <- Mutexes.create mutator kind;
    m.conditions.(0) <- Conditions.create_condition mutator;
    m.conditions.(1) <- Conditions.create_condition mutator;
    m.waiting <- Conditions.create_wait_set mutator);
  Ref.descr_of_sref variable

let mutex kind =
  simple (meeting kind)
    (fun pool shared -> Ref.deref_ro (Ref.sref_of_descr pool shared))
    (fun _ m _ ->
       Mutexes.lock m.mutex;
       m.turn <- m.turn + 1;
       Mutexes.unlock m.mutex)

let trips = 2000

let condition_round_trip =
  bench (meeting `Normal) (fun job ->
    let variable = Ref.sref_of_descr job.pool job.shared in
    let m = Ref.deref_ro variable in
    let entry =
      Heap.modify (Ref.heap variable) (fun mutator ->
        Conditions.alloc_wait_entry mutator m.waiting) in
    timed job (fun () ->
      Mutexes.lock m.mutex;
      for _ = 1 to trips do
        while m.turn <> job.me do
          Conditions.wait entry m.conditions.(job.me) m.mutex
        done;
        m.turn <- 1 - job.me;
        Conditions.signal m.conditions.(1 - job.me)
      done;
      Mutexes.unlock m.mutex;
      if job.me = 0 then trips else 0))

(* Queues *)

let queue pool = Queues.descr_of_squeue (Queues.create pool ())

let queue_pair =
  simple queue Queues.squeue_of_descr
    (fun _ q k -> Queues.push k q; keep (Queues.pop_c q))

(* It has no bound and no waiting: both sides look at the length. *)
let places = 1024

let queue_stream =
  bench queue (fun job ->
    let q = Queues.squeue_of_descr job.pool job.shared in
    repeat job (fun k ->
      if job.me = 0 then (
        if Queues.length q < places then Queues.push k q; 0)
      else if Queues.length q > 0 then (keep (Queues.pop_c q); 1)
      else 0))

(* Buffers: an operation is a chunk *)

let chunk = 4096
let text = String.make chunk 'x'
let ahead = 16 * chunk
let page = 16384
let buffer pool = Buffers.descr_of_buffer (Buffers.create pool page ())
let small make operation =
  simple ~batch:8 make Buffers.buffer_of_descr (fun _ -> operation)

let buffer_add =
  small buffer (fun b _ -> Buffers.add_string b text; Buffers.delete_hd b chunk)

let buffer_cycle =
  small buffer (fun b _ ->
    Buffers.add_string b text;
    keep (Buffers.sub b (Buffers.start b) chunk);
    Buffers.delete_hd b chunk)

let buffer_sub =
  small
    (fun pool ->
       let b = Buffers.create pool page () in
       for _ = 1 to ahead / chunk do Buffers.add_string b text done;
       Buffers.descr_of_buffer b)
    (fun b k -> keep (Buffers.sub b (k * chunk mod ahead) chunk))

let buffer_stream =
  bench buffer (fun job ->
    let b = Buffers.buffer_of_descr job.pool job.shared in
    repeat ~batch:8 job (fun _ ->
      if job.me = 0 then (
        if Buffers.length b < ahead then Buffers.add_string b text; 0)
      else if Buffers.length b >= chunk then (
        keep (Buffers.sub b (Buffers.start b) chunk);
        Buffers.delete_hd b chunk; 1)
      else 0))

(* Hash tables *)

let keys = 100_000

let full pool =
  let t = Tables.create pool () in
  for k = 0 to keys - 1 do Tables.replace t k k done;
  Tables.descr_of_hashtbl t

(* 7919 is prime: all keys are come to. *)
let table operation =
  simple full Tables.hashtbl_of_descr
    (fun job t k -> operation t ((k * 7919 + job.me * (keys / 2)) mod keys))

let table_insert =
  bench
    (fun pool ->
       List.init 8 (fun _ -> Tables.descr_of_hashtbl (Tables.create pool ())))
    (fun job ->
       let tables = List.map (Tables.hashtbl_of_descr job.pool) job.shared in
       timed job (fun () ->
         let count = ref 0 in
         let fill t =
           let k = ref job.me in
           while !k < keys do
             Tables.replace t !k !k;
             incr count;
             k := !k + job.workers
           done in
         List.iter fill tables;
         !count))

(* Mailboxes: a message is three integers. The number of a box travels in a
   variable, behind which its receiver has put it. *)

type message = int list ref

let make_box () : message Box.camlbox * Netmcore.res_id =
  Netmcore_camlbox.create_camlbox "bench" 10 512

let sender number : message Box.camlbox_sender =
  Netmcore_camlbox.lookup_camlbox_sender (`Resource number)

let number (`Resource n) = n
let numbers pool = Ref.descr_of_sref (Ref.sref pool (-1, -1))

(* What is there, and how many messages that is. *)
let receive box =
  let slots = Box.camlbox_wait box in
  List.iter
    (fun slot ->
       keep (!(Box.camlbox_get box slot));
       Box.camlbox_delete box slot)
    slots;
  List.length slots

(* Each worker has a box and tells its number; both numbers once they are known. *)
let with_boxes job work =
  let known = Ref.sref_of_descr job.pool job.shared in
  let box, id = make_box () in
  let told = ref false and both = ref (-1, -1) in
  while not !told do
    let a, b = Ref.deref_c known in
    if job.me = 0 then Ref.assign known (number id, b)
    else if a >= 0 then Ref.assign known (a, number id);
    let a, b = Ref.deref_c known in
    both := (a, b);
    told := a >= 0 && (b >= 0 || job.workers = 1);
    Unix.sleepf 0.001
  done;
  let mine, other = if job.me = 0 then !both else (snd !both, fst !both) in
  work box (sender (if job.workers = 1 then mine else other))

let message () = ref [1; 2; 3]
let last : message = ref []

let mailbox_self =
  bench numbers (fun job ->
    with_boxes job (fun box out ->
      repeat job (fun _ -> Box.camlbox_send out (message ()); receive box)))

(* The sender ends with an empty message, so that the receiver does not wait for
   ever. *)
let mailbox_stream =
  bench numbers (fun job ->
    with_boxes job (fun box out ->
      if job.me = 0 then (
        let sent =
          repeat job (fun _ -> Box.camlbox_send out (message ()); 0) in
        Box.camlbox_send out last;
        sent)
      else
        timed job (fun () ->
          let count = ref 0 and ended = ref false in
          while not !ended do
            let slots = Box.camlbox_wait box in
            List.iter
              (fun slot ->
                 if !(Box.camlbox_get box slot) = [] then ended := true
                 else incr count;
                 Box.camlbox_delete box slot)
              slots
          done;
          !count)))

let mailbox_round_trip =
  bench numbers (fun job ->
    with_boxes job (fun box out ->
      timed job (fun () ->
        for _ = 1 to trips do
          if job.me = 0 then (
            Box.camlbox_send out (message ()); keep (receive box))
          else (keep (receive box); Box.camlbox_send out (message ()))
        done;
        if job.me = 0 then trips else 0)))

let benches =
  [ "record_set", cell (fun r k -> Ref.assign r (record k));
    "record_get", cell (fun r _ -> keep (Ref.deref_c r));
    "array_set", array (fun a i -> Arrays.set a i 2.5);
    "array_get", array (fun a i -> keep (Arrays.get_c a i));
    "array_view", array_view;
    "matrix_set", matrix (fun m i j -> Matrices.set m i j 2.5);
    "matrix_get", matrix (fun m i j -> keep (Matrices.get_c m i j));
    "matrix_view", matrix_view;
    "heap_view", heap_view;
    "heap_modify", heap_modify;
    "heap_replace", heap_replace;
    "pool_4k", pool_pair 4096;
    "pool_64k", pool_pair 65536;
    "pool_1m", pool_pair 1048576;
    "mutex_normal", mutex `Normal;
    "mutex_errorcheck", mutex `Errorcheck;
    "mutex_recursive", mutex `Recursive;
    "condition_round_trip", condition_round_trip;
    "queue_pair", queue_pair;
    "queue_stream", queue_stream;
    "buffer_add", buffer_add;
    "buffer_cycle", buffer_cycle;
    "buffer_sub", buffer_sub;
    "buffer_stream", buffer_stream;
    "table_insert", table_insert;
    "table_replace", table (fun t k -> Tables.replace t k k);
    "table_get", table (fun t k -> keep (Tables.find_c t k));
    "table_view", table (fun t k -> keep (Tables.find_ro t k));
    "mailbox_self", mailbox_self;
    "mailbox_stream", mailbox_stream;
    "mailbox_round_trip", mailbox_round_trip ]

let () =
  let name = Sys.argv.(1) and workers = int_of_string Sys.argv.(2) in
  let pool = Netmcore_mempool.create_mempool (512 * 1024 * 1024) in
  let work = (List.assoc name benches) () in
  let fork, join = Process.def_process (fun () -> work pool workers) in
  let seconds, operations, used =
    Netmcore.run ~socket_directory:"run"
      ~first_process:(fun () -> Process.start ~inherit_resources:`All fork ())
      ~extract_result:(fun _ pid ->
        match Process.join_nowait join pid with
          | Some outcome -> outcome
          | None -> failwith "no outcome")
      () in
  Netmcore.release pool;
  Printf.printf "%.6f %d %.6f\n" seconds operations used
