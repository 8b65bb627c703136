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

let trips = 2000

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
