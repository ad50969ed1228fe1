/*
 * Preface's runtime: a frozen base model in a mapped image, and narrow tasks from signed bundles.
 *
 * Calls return PREFACE_OK or why they failed; preface_last_error() has the text. Only a call that returns PREFACE_OK
 * has results, except where a count is said to be set. No call ends the process: a panic inside the library becomes
 * PREFACE_PANICKED and leaves its session PREFACE_POISONED, good for nothing but closing (a library built with
 * panic=abort, as the profile `device` builds it, ends the process there).
 *
 * Pointers. A null pointer is refused with PREFACE_INVALID_ARGUMENT unless it is said what it means. Any other pointer
 * must be good for what it is named after until the call returns; the library keeps none of them. Strings end with a
 * zero byte; texts are UTF-8. Handles are good until they are closed, once.
 *
 * Threads. An image may be used by any number of threads at once. A session may move between threads, and is used by
 * one at a time: a second one that calls meanwhile is refused with PREFACE_BUSY. Sessions of one image run side by
 * side. A handle is closed when no other call with it is under way; an image may be closed before its sessions.
 *
 * Memory. Closing a handle gives back all that it took. After its first, an answer or a generated token from token ids
 * allocates nothing where the image runs on PREFACE_ENGINE_EXECUTOR; reading a text takes what the tokenizer needs, a
 * generated text that is longer than all before it room for itself, and preface_session_answer_all() and
 * preface_session_generate_all() a list of their requests.
 *
 * Structures begin with their size: begin with `structure s = {sizeof(structure)};`, which leaves the other fields zero.
 * Later versions add fields at the end, whose zero means what was meant before.
 */
#ifndef PREFACE_H
#define PREFACE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header; preface_version() is the library's. */
#define PREFACE_VERSION "0.1.0"

/* What a call returns. Numbers and names stay; later versions add to them. */
enum preface_status {
  PREFACE_OK = 0,
  PREFACE_INVALID_ARGUMENT = 1, /* null, not UTF-8, a size too small, a value that is not of this header */
  PREFACE_BUFFER_TOO_SMALL = 2, /* the call has set how much is needed */
  PREFACE_NO_TASK = 3,          /* none of that number, or none is active */
  PREFACE_BUSY = 4,             /* another thread is in a call with the session */
  PREFACE_PANICKED = 5,         /* a fault of the library */
  PREFACE_POISONED = 6,         /* the session saw PREFACE_PANICKED before */
  /* Files. The numbers from 10 to 21 are the exit codes of `preface verify`. */
  PREFACE_MALFORMED = 10,          /* no bundle or no base image, or cut short */
  PREFACE_UNTRUSTED = 11,          /* not signed by enough keys of the trust store */
  PREFACE_BAD_SIGNATURE = 12,      /* changed after it was signed */
  PREFACE_CHANGED = 13,            /* bytes do not match their digest */
  PREFACE_MADE_FOR_ANOTHER = 14,   /* base, tokenizer, namespace or runtime */
  PREFACE_ROLLBACK = 15,           /* older than the trust store allows */
  PREFACE_EXPIRED = 16,            /* past its last day by the system's clock */
  PREFACE_REVOKED = 17,            /* the trust store revokes the bundle or its key */
  PREFACE_TRUST_STORE = 18,        /* missing or invalid */
  PREFACE_UNREADABLE = 20,         /* the bundle or the image */
  PREFACE_UNSAFE_PERMISSIONS = 21, /* others could have written the trust store */
  PREFACE_UNFIT = 30,              /* the image was compiled for another machine or build */
  PREFACE_UNSUPPORTED = 31,        /* verified, but not for this base or this version */
  /* Texts. */
  PREFACE_TOO_LONG = 32,     /* more tokens than fit */
  PREFACE_EMPTY = 33,        /* no tokens */
  PREFACE_INPUTS = 34,       /* one text where the task reads two, or two where it reads one */
  PREFACE_TOKEN = 35,        /* a token or a token type that the base does not have */
  PREFACE_NOT_A_NUMBER = 36, /* the answer's scores: image or bundle are damaged */
  PREFACE_TOKENIZER = 37,    /* the image's tokenizer failed */
  PREFACE_ENGINE = 38,       /* the engine failed */
  PREFACE_OTHER_ANSWER = 39  /* the task gives labels where text is asked for, or text where labels are */
};

/* The library's version, as "0.1.0". */
const char *preface_version(void);

/* A status as it is written here, "PREFACE_OK"; "PREFACE_?" for a number that is none. */
const char *preface_status_name(int32_t status);

/*
 * Writes the text of the last call that failed on this thread, and a zero byte: what is wrong and what to do about it.
 * A text that is too long is cut. Returns the length of the whole text without the zero; `buffer` may be null where
 * `capacity` is 0.
 */
size_t preface_last_error(char *buffer, size_t capacity);

/* ---- Images ---- */

/* A base image, mapped: processes that open the same file share its memory. */
typedef struct preface_image preface_image;

enum preface_kind {
  PREFACE_ENCODER = 1,        /* every token sees every token */
  PREFACE_DECODER = 2,        /* a token sees itself and those before it */
  PREFACE_ENCODER_DECODER = 3 /* an encoder that a decoder reads */
};

enum preface_engine {
  PREFACE_ENGINE_EXECUTOR = 1, /* fused steps, which allocate nothing while they run */
  PREFACE_ENGINE_PLAN = 2      /* tract's own plan: any graph, with its allocations */
};

typedef struct preface_image_facts {
  size_t size;          /* sizeof(preface_image_facts) */
  size_t hidden;        /* numbers in one row between layers */
  size_t layers;
  size_t vocabulary;    /* token ids are below this */
  size_t max_positions; /* tokens that the base has positions for; 0: nothing bounds them */
  int32_t kind;         /* enum preface_kind; 0: one that this header does not name */
  int32_t engine;       /* enum preface_engine; 0 as above */
} preface_image_facts;

/*
 * Maps the base image at `path`, made by `preface compile`, and checks its tables; the weights are not read.
 *
 * The file must not be changed or cut short while the image or a session of it is open: that ends the process with
 * SIGBUS. Renaming another file over it is safe, and is how `preface compile` writes.
 */
int32_t preface_image_open(const char *path, preface_image **image);

/* Fills in `facts`. */
int32_t preface_image_describe(const preface_image *image, preface_image_facts *facts);

/* Lets go of an image; nothing happens where it is null. */
void preface_image_close(preface_image *image);

/* ---- Sessions and tasks ---- */

/* A base ready to run, with the tasks loaded onto it. */
typedef struct preface_session preface_session;

enum preface_overlength {
  PREFACE_REFUSE = 0,  /* a text that does not fit is PREFACE_TOO_LONG */
  PREFACE_TRUNCATE = 1 /* its end is cut off; texts to be tagged are never cut */
};

enum preface_tokenizer {
  PREFACE_TOKENIZER_AT_OPEN = 0,
  PREFACE_TOKENIZER_WITH_FIRST_TEXT = 1 /* or never, where only token ids are given and no task generates text */
};

typedef struct preface_options {
  size_t size;        /* sizeof(preface_options) */
  size_t max_tokens;  /* of a text, special tokens included; 0: what the base has positions for */
  int32_t overlength; /* enum preface_overlength */
  int32_t tokenizer;  /* enum preface_tokenizer */
  uint32_t threads;   /* that answer, the asking one among them, at most 64; 0: one. Answers do not depend on how many */
  int32_t pinned;     /* 1: each but the asking one stays on a processor of its own; 0: none does */
  size_t texts;       /* that preface_session_generate_all() generates at once, at most 64; 0: one */
} preface_options;

enum preface_answer_kind {
  PREFACE_LABEL = 1,  /* the most probable label */
  PREFACE_LABELS = 2, /* every label that is probable enough */
  PREFACE_TAGS = 3,   /* a label for each word */
  PREFACE_TEXT = 4    /* text that the base goes on with */
};

typedef struct preface_task_facts {
  size_t size;    /* sizeof(preface_task_facts) */
  size_t labels;  /* how many the task has; they are numbered from 0 */
  int32_t answer; /* enum preface_answer_kind */
  int32_t inputs; /* texts that it is asked about at once: 1 or 2 */
} preface_task_facts;

/* Makes `image` ready to run; null `options` are all zero. */
int32_t preface_session_open(const preface_image *image, const preface_options *options, preface_session **session);

/* Lets go of a session; nothing happens where it is null. */
void preface_session_close(preface_session *session);

/*
 * Verifies the bundle file against the trust store file and loads its task beside the others. `task` is set to its
 * number: they count from 0 in the order of loading, and a bundle of a task that is loaded takes its place and number.
 * The active task stays the active one.
 */
int32_t preface_session_load(preface_session *session, const char *bundle, const char *trust, size_t *task);

/* A task of a store whose active bundle is another than before; the strings are good until the function returns. */
typedef struct preface_served {
  size_t size;        /* sizeof(preface_served) of the library */
  const char *name;   /* the task's */
  const char *bundle; /* the id of the bundle that serves; null: none may, and the task is not to be asked any more */
  const char *notes;  /* what whoever runs the device should hear, a line each */
  size_t task;        /* the task's number, where a bundle serves */
} preface_served;

/* Is told of a task. It must return, and a call with the same session is PREFACE_BUSY meanwhile. */
typedef void (*preface_hear_served)(void *context, const preface_served *served);

/*
 * Loads what the store in folder `store` has active, as `preface install` left it, verified against the trust store file:
 * at first every task, and with later calls those that changed since, of which `hear` is told; it may be null, `context`
 * too. A program calls it between two requests: where nothing changed, in the trust store neither, it costs three look-ups
 * of files. A task keeps its number, and the active task stays the active one; one that may not be served any more, because
 * its bundles are revoked or changed, answers nothing until another is installed: PREFACE_NO_TASK.
 */
int32_t preface_session_follow(preface_session *session, const char *store, const char *trust,
                               preface_hear_served hear, void *context);

/* Sets `count` to how many tasks are loaded. */
int32_t preface_session_task_count(preface_session *session, size_t *count);

/* Fills in `facts`. */
int32_t preface_session_task(preface_session *session, size_t task, preface_task_facts *facts);

/*
 * Writes the task's name, or the label of that number, and a zero byte. `length`, unless it is null, is set to the
 * length without the zero, also with PREFACE_BUFFER_TOO_SMALL, when nothing is written.
 */
int32_t preface_session_task_name(preface_session *session, size_t task, char *buffer, size_t capacity, size_t *length);
int32_t preface_session_label(preface_session *session, size_t task, size_t label, char *buffer, size_t capacity,
                              size_t *length);

/* Makes the task the one that answers, in no time. */
int32_t preface_session_activate(preface_session *session, size_t task);

/* ---- Answers ---- */

typedef struct preface_answer {
  size_t size;          /* sizeof(preface_answer) */
  int32_t *labels;      /* room for the numbers of labels; may be null where capacity is 0 */
  float *scores;        /* room for their probabilities, or null */
  size_t capacity;      /* elements that there is room for in each */
  size_t count;         /* set to how many there are, also with PREFACE_BUFFER_TOO_SMALL, when none is written */
  int32_t kind;         /* set to the enum preface_answer_kind */
  int32_t out_of_scope; /* set to 1 where the one label is less probable than the task demands, else to 0 */
  size_t text_length;   /* set to the bytes of a PREFACE_TEXT, which preface_session_text() gives; else to 0 */
} preface_answer;

/*
 * Tokens as the base reads them, special tokens included: of the caller's own tokenizer, or from
 * preface_session_encode().
 */
typedef struct preface_tokens {
  size_t size;          /* sizeof(preface_tokens) */
  uint32_t *ids;        /* token ids */
  uint32_t *types;      /* token types: of a pair, which of the two a token is of. Null: all are 0 */
  size_t capacity;      /* elements that there is room for in each, for preface_session_encode() */
  size_t count;         /* tokens */
  int32_t *words;       /* for tags: the place of each word's first token, -1 where it has none; else null */
  size_t word_capacity; /* elements that there is room for in words */
  size_t word_count;    /* words */
} preface_tokens;

/*
 * Answers a text, or for a task that reads pairs two of them, with the active task; `second` is null for one.
 *
 * PREFACE_LABEL gives one label, PREFACE_LABELS at most as many as the task has, PREFACE_TAGS one a word, in order: -1
 * with score 0 for a word that the tokenizer drops. PREFACE_TEXT gives no label.
 */
int32_t preface_session_answer(preface_session *session, const char *text, const char *second, preface_answer *answer);

/*
 * Writes a text or a pair as the active task reads it, cut as the options say. Both counts are set, also with
 * PREFACE_BUFFER_TOO_SMALL, when nothing else is written. `types` may be null for one text, `words` where the task
 * does not tag.
 */
int32_t preface_session_encode(preface_session *session, const char *text, const char *second, preface_tokens *tokens);

/* Answers tokens with the active task; they are only read. */
int32_t preface_session_answer_tokens(preface_session *session, const preface_tokens *tokens, preface_answer *answer);

/*
 * Answers `count` texts at once, the n-th with task tasks[n], which need not be the active one, and into answers[n], a
 * structure of its own. Faster than one by one. A task that generates text is PREFACE_OTHER_ANSWER. Where an answer has
 * too little room its count is set, the others are written, and the call is PREFACE_BUFFER_TOO_SMALL.
 */
int32_t preface_session_answer_all(preface_session *session, size_t count, const size_t *tasks,
                                   const preface_tokens *const *tokens, preface_answer *const *answers);

/* ---- Generated texts ---- */

/* How texts are generated; all zero: by the most probable token, until the task ends the text. */
typedef struct preface_generation {
  size_t size;              /* sizeof(preface_generation) */
  uint64_t seed;            /* where the draws of each text begin */
  float temperature;        /* what the logits are divided by; 0: the most probable token */
  float top_p;              /* only the most probable tokens that add up to this; 0: all */
  float repetition_penalty; /* makes tokens that were seen less probable; 0 and 1 change nothing */
  uint32_t top_k;           /* only so many of the most probable tokens; 0: all */
  size_t most_tokens;       /* that a text has; 0, or more than the task allows: as the task says */
  const char *const *stops; /* strings that end a text before themselves, unless a constraint says what it has */
  size_t stop_count;        /* how many; 0: none, and stops may be null */
} preface_generation;

/* What a text may say: one of some labels, or JSON of a shape; all zero: anything. */
typedef struct preface_constraint {
  size_t size;               /* sizeof(preface_constraint) */
  const char *const *labels; /* the text is one of these */
  size_t label_count;        /* how many; 0: none, and labels may be null */
  const char *shape;         /* JSON as `preface run --shape` reads it; null where there are labels */
} preface_constraint;

/* Is given each token as it is chosen; 0 goes on, anything else ends the text behind the token. */
typedef int32_t (*preface_hear_token)(void *context, uint32_t token);

/*
 * Is given a text as it grows, `length` bytes of whole characters without a zero behind them; 0 goes on, anything else
 * ends the text behind them.
 *
 * Either must return, and a call with the same session is PREFACE_BUSY meanwhile.
 */
typedef int32_t (*preface_hear_text)(void *context, const char *text, size_t length);

/* Generates texts so from now on, once a task is loaded that generates any; null `generation` is all zero. */
int32_t preface_session_set_generation(preface_session *session, const preface_generation *generation);

/*
 * Lets the texts of a task say from now on what is allowed and nothing else; null `constraint` is all zero. A task that
 * is loaded again may say anything.
 */
int32_t preface_session_constrain(preface_session *session, size_t task, const preface_constraint *constraint);

/*
 * Lets the base go on with tokens as the active task says; `context` is handed to `hear`, and may be null.
 * preface_session_text() stays as it was.
 */
int32_t preface_session_generate(preface_session *session, const preface_tokens *tokens, preface_hear_token hear,
                                 void *context);

/* The same as text, which preface_session_text() gives as a whole afterwards: what was heard. */
int32_t preface_session_stream(preface_session *session, const preface_tokens *tokens, preface_hear_text hear,
                               void *context);

/*
 * Is given the texts of several requests as they grow: `length` bytes more of that of request `index`, or null when it has
 * ended. The answer is that of a preface_hear_text, and counts for that text alone.
 */
typedef int32_t (*preface_hear_one)(void *context, size_t index, const char *text, size_t length);

/*
 * Streams `count` texts, the n-th with task tasks[n], which need not be the active one: preface_options.texts of them at
 * once, the next as soon as one ends. Faster than one by one, and the texts are the same. preface_session_text() stays as
 * it was.
 */
int32_t preface_session_generate_all(preface_session *session, size_t count, const size_t *tasks,
                                     const preface_tokens *const *tokens, preface_hear_one hear, void *context);

/*
 * Writes the text that was streamed last, or of the last answer where that was a PREFACE_TEXT, else an empty one, and a
 * zero byte. `length`, unless it is null, is set to the length without the zero, also with PREFACE_BUFFER_TOO_SMALL, when
 * nothing is written.
 */
int32_t preface_session_text(preface_session *session, char *buffer, size_t capacity, size_t *length);

#ifdef __cplusplus
}
#endif

#endif
