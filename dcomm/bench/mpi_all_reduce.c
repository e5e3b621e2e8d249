/* Times MPI_Allreduce as dcomm's own benchmark times its all-reduce; started by dcomm/bench/mpi.py under mpirun.
 *
 *   mpi_all_reduce PLAN
 *
 * Each line of PLAN is one case:
 *   TYPE OP COUNT CALLS BATCHES WARM BUFFERS IN_PLACE PERIOD FOLDER
 * FOLDER/RANK holds one period (PERIOD elements) of each rank's input, FOLDER/right that of the result. Before each
 * batch, outside the clock, every buffer is filled by a copy of the input and the ranks meet at a barrier; afterwards
 * every element is compared bit by bit. The offset into the input changes from batch to batch, so that what an
 * earlier batch left behind is wrong. Rank 0 prints for each case the wrong elements of all ranks and the
 * microseconds of a call in each batch, on the slowest rank.
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { kOffsets = 8, kHuge = 2 << 20, kMaxBuffers = 64, kMaxBatches = 4096 };

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void fail(const char* what, const char* name) {
  fprintf(stderr, "mpi_all_reduce: %s: %s\n", what, name);
  MPI_Abort(MPI_COMM_WORLD, 3);
}

/* As NumPy does: large arrays on huge pages. */
static char* allocate(size_t nbytes) {
  void* memory = NULL;
  if (posix_memalign(&memory, nbytes >= 2 * kHuge ? kHuge : 64, nbytes + 64) != 0) fail("no memory", "buffers");
  if (nbytes >= 2 * kHuge) madvise(memory, nbytes, MADV_HUGEPAGE);
  memset(memory, 0, nbytes);
  return memory;
}

/* `count` elements of the sequence that repeats the file's period. */
static char* read_sequence(const char* folder, const char* name, size_t period, size_t count, size_t item) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* file = fopen(path, "rb");
  char* one = malloc(period * item);
  if (file == NULL || one == NULL || fread(one, item, period, file) != period) fail("cannot read", path);
  fclose(file);
  char* sequence = allocate(count * item);
  for (size_t i = 0; i < count; i += period) {
    memcpy(sequence + i * item, one, (count - i < period ? count - i : period) * item);
  }
  free(one);
  return sequence;
}

static MPI_Datatype type_of(const char* name) {
  if (strcmp(name, "float32") == 0) return MPI_FLOAT;
  if (strcmp(name, "float64") == 0) return MPI_DOUBLE;
  if (strcmp(name, "int8") == 0) return MPI_INT8_T;
  if (strcmp(name, "uint8") == 0) return MPI_UINT8_T;
  if (strcmp(name, "int32") == 0) return MPI_INT32_T;
  if (strcmp(name, "int64") == 0) return MPI_INT64_T;
  fail("unknown type", name);
  return MPI_DATATYPE_NULL;
}

static MPI_Op op_of(const char* name) {
  if (strcmp(name, "sum") == 0) return MPI_SUM;
  if (strcmp(name, "prod") == 0) return MPI_PROD;
  if (strcmp(name, "min") == 0) return MPI_MIN;
  if (strcmp(name, "max") == 0) return MPI_MAX;
  if (strcmp(name, "band") == 0) return MPI_BAND;
  if (strcmp(name, "bor") == 0) return MPI_BOR;
  if (strcmp(name, "bxor") == 0) return MPI_BXOR;
  fail("unknown operation", name);
  return MPI_OP_NULL;
}

static long count_wrong(const char* found, const char* right, size_t count, size_t item) {
  long wrong = 0;
  if (memcmp(found, right, count * item) == 0) return 0;
  for (size_t i = 0; i < count; ++i) wrong += memcmp(found + i * item, right + i * item, item) != 0;
  return wrong;
}

struct Case {
  char type[16], op[16], folder[2048];
  size_t count, period;
  int calls, batches, warm, buffers, in_place;
};

static void run_case(const struct Case* c, int rank) {
  const MPI_Datatype type = type_of(c->type);
  const MPI_Op op = op_of(c->op);
  int item_bytes;
  MPI_Type_size(type, &item_bytes);
  const size_t item = (size_t)item_bytes, nbytes = c->count * item;
  const int count = (int)c->count;
  char own[16];
  snprintf(own, sizeof own, "%d", rank);
  char* input = read_sequence(c->folder, own, c->period, c->count + kOffsets, item);
  char* right = read_sequence(c->folder, "right", c->period, c->count + kOffsets, item);
  char *in[kMaxBuffers], *out[kMaxBuffers];
  for (int b = 0; b < c->buffers; ++b) {
    in[b] = allocate(nbytes);
    out[b] = c->in_place ? in[b] : allocate(nbytes);
  }
  static double us[kMaxBatches];
  long wrong = 0, all_wrong = 0;
  for (int batch = 0; batch < c->warm + c->batches; ++batch) {
    const size_t offset = (size_t)(batch % kOffsets) * item;
    for (int b = 0; b < c->buffers; ++b) memcpy(in[b], input + offset, nbytes);
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = now_us();
    for (int i = 0; i < c->calls; ++i) {
      const int b = i % c->buffers;
      MPI_Allreduce(c->in_place ? MPI_IN_PLACE : in[b], out[b], count, type, op, MPI_COMM_WORLD);
    }
    const double elapsed = now_us() - start;
    if (batch >= c->warm) us[batch - c->warm] = elapsed / c->calls;
    for (int b = 0; b < c->buffers; ++b) wrong += count_wrong(out[b], right + offset, c->count, item);
  }
  static double slowest[kMaxBatches];
  MPI_Reduce(us, slowest, c->batches, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
  MPI_Reduce(&wrong, &all_wrong, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
  if (rank == 0) {
    printf("%ld", all_wrong);
    for (int b = 0; b < c->batches; ++b) printf(" %.4f", slowest[b]);
    printf("\n");
    fflush(stdout);
  }
  for (int b = 0; b < c->buffers; ++b) {
    if (out[b] != in[b]) free(out[b]);
    free(in[b]);
  }
  free(input);
  free(right);
}

int main(int argc, char** argv) {
  int rank;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  FILE* plan = argc == 2 ? fopen(argv[1], "r") : NULL;
  if (plan == NULL) fail("cannot read the plan", argc == 2 ? argv[1] : "none given");
  struct Case c;
  while (fscanf(plan, "%15s %15s %zu %d %d %d %d %d %zu %2047s", c.type, c.op, &c.count, &c.calls, &c.batches, &c.warm,
                &c.buffers, &c.in_place, &c.period, c.folder) == 10) {
    if (c.buffers < 1 || c.buffers > kMaxBuffers || c.batches < 1 || c.batches > kMaxBatches) fail("bad case", c.folder);
    run_case(&c, rank);
  }
  fclose(plan);
  MPI_Finalize();
  return 0;
}
