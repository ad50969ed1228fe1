/*
 * What the programs in C share: expectations that name their line, room for answers and tokens, and with
 * COUNT_ALLOCATIONS an allocator that counts.
 */
#define _POSIX_C_SOURCE 200809L

#include <preface.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS 256

#ifdef COUNT_ALLOCATIONS
static size_t allocations;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static void *counted(void *memory) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  return memory;
}

void *malloc(size_t size) { return counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void *realloc(void *old, size_t size) { return counted(__libc_realloc(old, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
int posix_memalign(void **memory, size_t alignment, size_t size) {
  *memory = counted(__libc_memalign(alignment, size));
  return *memory ? 0 : ENOMEM;
}

/* The calls until now. */
static size_t counts(void) { return __atomic_load_n(&allocations, __ATOMIC_RELAXED); }
#endif

static void fail(int line, const char *what) {
  char text[512];
  preface_last_error(text, sizeof text);
  fprintf(stderr, "%s:%d: %s; the last error is: %s\n", __BASE_FILE__, line, what, text);
  exit(1);
}

static void expect(int line, int32_t wanted, int32_t found) {
  char what[128];
  if (wanted == found) return;
  snprintf(what, sizeof what, "%s instead of %s", preface_status_name(found), preface_status_name(wanted));
  fail(line, what);
}

#define GOOD(call) expect(__LINE__, PREFACE_OK, (call))
#define EXPECT(status, call) expect(__LINE__, (status), (call))
#define ASSERT(holds) \
  if (!(holds)) fail(__LINE__, #holds)

/* The last error holds `part`. */
static void expect_text(int line, const char *part) {
  char text[1024];
  size_t length = preface_last_error(text, sizeof text);
  if (length != strlen(text) || !strstr(text, part)) fail(line, part);
}

/* What a task says about one line. */
typedef struct said {
  preface_answer answer;
  int32_t labels[TOKENS];
  float scores[TOKENS];
} said;

static preface_answer *ready(said *said) {
  memset(said, 0, sizeof *said);
  said->answer.size = sizeof said->answer;
  said->answer.labels = said->labels;
  said->answer.scores = said->scores;
  said->answer.capacity = TOKENS;
  return &said->answer;
}

/* Token ids with room for a text. */
typedef struct text {
  preface_tokens tokens;
  uint32_t ids[TOKENS], types[TOKENS];
  int32_t words[TOKENS];
} text;

static preface_tokens *room(text *text) {
  memset(text, 0, sizeof *text);
  text->tokens.size = sizeof text->tokens;
  text->tokens.ids = text->ids;
  text->tokens.types = text->types;
  text->tokens.words = text->words;
  text->tokens.capacity = text->tokens.word_capacity = TOKENS;
  return &text->tokens;
}
