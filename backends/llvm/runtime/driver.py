"""The function that runs a table of kernels on all threads."""

from __future__ import annotations

ENTRY = "fxquant_run"

# 64-bit words of a context, in order.
CONTEXT = (
    "steps",  # the table
    "count",  # its rows
    "arrived",  # pointer to a counter, zero at the start
    "thread_number",  # omp_get_thread_num
    "thread_count",  # omp_get_num_threads
    "parallel",  # GOMP_parallel
    "yield",  # sched_yield
    "clocks",  # pointer to count + 1 time stamps that thread 0 fills, or null
)
# 64-bit words of a step, in order: kernel, its arguments, items of work, whether all threads wait before it.
STEP = ("kernel", "arguments", "items", "wait")

DRIVER = """
; void fxquant_run(ptr context, i64 threads)
;
; Each step is kernel(arguments, first, last) on every thread, with an equal share of its items. Where a step asks for
; it, all threads wait until all others have done the steps before. A team may have fewer threads than were asked for.

declare void @llvm.x86.sse2.pause()
declare i64 @llvm.readcyclecounter()

define internal void @wait(ptr %context, i64 %team, i64 %goal) {
entry:
  %arrived_at = getelementptr i8, ptr %context, i64 16
  %arrived = load ptr, ptr %arrived_at
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel
  br label %look
look:
  %spins = phi i64 [ 0, %entry ], [ %next, %rest ]
  %now = load atomic i64, ptr %arrived acquire, align 8
  %done = icmp uge i64 %now, %goal
  br i1 %done, label %leave, label %spin
spin:
  call void @llvm.x86.sse2.pause()
  %next = add i64 %spins, 1
  %short = icmp ult i64 %next, SPINS
  br i1 %short, label %rest, label %give_way
give_way:
  %yield_at = getelementptr i8, ptr %context, i64 48
  %yield = load ptr, ptr %yield_at
  %ignored = call i32 %yield()
  br label %rest
rest:
  br label %look
leave:
  ret void
}

define internal void @stamp(ptr %context, i64 %thread, i64 %index) {
entry:
  %clocks_at = getelementptr i8, ptr %context, i64 56
  %clocks = load ptr, ptr %clocks_at
  %none = icmp eq ptr %clocks, null
  %other = icmp ne i64 %thread, 0
  %skip = or i1 %none, %other
  br i1 %skip, label %leave, label %write
write:
  %now = call i64 @llvm.readcyclecounter()
  %place = getelementptr i64, ptr %clocks, i64 %index
  store i64 %now, ptr %place
  br label %leave
leave:
  ret void
}

define internal void @work(ptr %context, i64 %thread, i64 %team) {
entry:
  %steps = load ptr, ptr %context
  %count_at = getelementptr i8, ptr %context, i64 8
  %count = load i64, ptr %count_at
  br label %head
head:
  %index = phi i64 [ 0, %entry ], [ %index_next, %tail ]
  %goal = phi i64 [ 0, %entry ], [ %goal_next, %tail ]
  call void @stamp(ptr %context, i64 %thread, i64 %index)
  %more = icmp ult i64 %index, %count
  br i1 %more, label %body, label %leave
body:
  %row_bytes = mul i64 %index, 32
  %row = getelementptr i8, ptr %steps, i64 %row_bytes
  %arguments_at = getelementptr i8, ptr %row, i64 8
  %items_at = getelementptr i8, ptr %row, i64 16
  %wait_at = getelementptr i8, ptr %row, i64 24
  %kernel = load ptr, ptr %row
  %arguments = load ptr, ptr %arguments_at
  %items = load i64, ptr %items_at
  %wait = load i64, ptr %wait_at
  %stay = icmp ne i64 %wait, 0
  %goal_more = add i64 %goal, %team
  %goal_next = select i1 %stay, i64 %goal_more, i64 %goal
  %alone = icmp eq i64 %team, 1
  %together = xor i1 %alone, true
  %meet = and i1 %stay, %together
  br i1 %meet, label %meeting, label %share
meeting:
  call void @wait(ptr %context, i64 %team, i64 %goal_next)
  br label %share
share:
  %first_part = mul i64 %items, %thread
  %first = udiv i64 %first_part, %team
  %last_part = add i64 %first_part, %items
  %last = udiv i64 %last_part, %team
  %any = icmp ult i64 %first, %last
  br i1 %any, label %run, label %tail
run:
  call void %kernel(ptr %arguments, i64 %first, i64 %last)
  br label %tail
tail:
  %index_next = add i64 %index, 1
  br label %head
leave:
  ret void
}

define internal void @member(ptr %context) {
entry:
  %number_at = getelementptr i8, ptr %context, i64 24
  %number_of = load ptr, ptr %number_at
  %count_at = getelementptr i8, ptr %context, i64 32
  %count_of = load ptr, ptr %count_at
  %number = call i32 %number_of()
  %count = call i32 %count_of()
  %thread = sext i32 %number to i64
  %team = sext i32 %count to i64
  call void @work(ptr %context, i64 %thread, i64 %team)
  ret void
}

define void @fxquant_run(ptr %context, i64 %threads) {
entry:
  %many = icmp sgt i64 %threads, 1
  br i1 %many, label %team, label %alone
team:
  %parallel_at = getelementptr i8, ptr %context, i64 40
  %parallel = load ptr, ptr %parallel_at
  %wanted = trunc i64 %threads to i32
  call void %parallel(ptr @member, ptr %context, i32 %wanted, i32 0)
  ret void
alone:
  call void @work(ptr %context, i64 0, i64 1)
  ret void
}
""".replace("SPINS", "4000")  # a waiting thread looks that often before it yields
