/*
 * Lets a task go on with a text through runtime/c/include/preface.h.
 *
 *   generate IMAGE TRUST BUNDLE LABELS TEXT SHAPE STOP STOP
 *
 * LABELS is a bundle of a task that gives labels. Prints the text that the task of BUNDLE generates, then its token ids
 * as they are drawn at temperature 50 from seed 7, and then texts that are drawn so and streamed under each option: JSON
 * of SHAPE where the base can spell it, and one that a STOP ends. With COUNT_ALLOCATIONS it sees to it that neither a
 * token, a draw nor a streamed text allocates.
 */
#include "check.h"

#define REQUESTS 5

/* The tokens that were heard. */
typedef struct heard {
  size_t count, most; /* as many end the text; 0: they do not */
  uint32_t ids[TOKENS];
} heard;

static int32_t hear(void *context, uint32_t token) {
  heard *heard = context;
  ASSERT(heard->count < TOKENS);
  heard->ids[heard->count++] = token;
  return heard->count == heard->most;
}

/* A session answers nobody else meanwhile. */
static int32_t hear_busy(void *session, uint32_t token) {
  size_t count;
  (void)token;
  EXPECT(PREFACE_BUSY, preface_session_task_count(session, &count));
  return 0;
}

/* The text that was heard. */
typedef struct streamed {
  size_t pieces, most, length; /* as many pieces end the text; 0: they do not */
  char text[1024];
} streamed;

static int32_t hear_text(void *context, const char *text, size_t length) {
  streamed *streamed = context;
  ASSERT(length > 0 && streamed->length + length < sizeof streamed->text);
  memcpy(streamed->text + streamed->length, text, length);
  streamed->length += length;
  return ++streamed->pieces == streamed->most;
}

static int32_t hear_nothing(void *context, const char *text, size_t length) {
  (void)context;
  (void)text;
  (void)length;
  ASSERT(0);
  return 0;
}

static void generate(preface_session *session, const preface_tokens *tokens, heard *heard) {
  heard->count = heard->most = 0;
  GOOD(preface_session_generate(session, tokens, hear, heard));
  ASSERT(heard->count > 0);
}

/* The answer is a text, which is only written where there is room for it. */
static void print_text(preface_session *session, const char *text) {
  char buffer[1024] = "untouched";
  size_t length = 0;
  said said;
  GOOD(preface_session_answer(session, text, NULL, ready(&said)));
  ASSERT(said.answer.kind == PREFACE_TEXT && said.answer.count == 0 && said.answer.text_length > 0);
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_text(session, buffer, said.answer.text_length, &length));
  ASSERT(length == said.answer.text_length && !strcmp(buffer, "untouched"));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_text(session, NULL, sizeof buffer, &length));
  GOOD(preface_session_text(session, buffer, length + 1, NULL));
  ASSERT(strlen(buffer) == length);
  printf("%s\n", buffer);
}

/* Draws are the same for a seed, others for another, and the most probable tokens again where nothing is set. */
static void print_draws(preface_session *session, const preface_tokens *tokens) {
  preface_generation sampling = {sizeof sampling, 7, 50, 0, 0, 0, 0, NULL, 0};
  static heard probable, drawn, again;
  size_t index;
  generate(session, tokens, &probable);
  GOOD(preface_session_set_generation(session, &sampling));
  generate(session, tokens, &drawn);
  ASSERT(drawn.count != probable.count || memcmp(drawn.ids, probable.ids, drawn.count * sizeof *drawn.ids));
#ifdef COUNT_ALLOCATIONS
  size_t before = counts();
  generate(session, tokens, &again);
  ASSERT(counts() == before);
#endif
  generate(session, tokens, &again);
  ASSERT(drawn.count == again.count && !memcmp(drawn.ids, again.ids, drawn.count * sizeof *drawn.ids));
  sampling.temperature = -1;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_set_generation(session, &sampling));
  expect_text(__LINE__, "temperature -1 is outside its range");
  sampling.temperature = 1;
  sampling.top_k = 1;
  GOOD(preface_session_set_generation(session, &sampling));
  generate(session, tokens, &again);
  ASSERT(probable.count == again.count && !memcmp(probable.ids, again.ids, again.count * sizeof *again.ids));
  again.count = 0;
  again.most = 3;
  GOOD(preface_session_generate(session, tokens, hear, &again));
  ASSERT(again.count == 3 && !memcmp(probable.ids, again.ids, 3 * sizeof *again.ids));
  for (index = 0; index < drawn.count; index++) printf(" %" PRIu32, drawn.ids[index]);
  putchar('\n');
}

/* A text as it is streamed is the one that the session has afterwards; `most` pieces end it. */
static void stream(preface_session *session, const preface_tokens *tokens, size_t most, streamed *streamed) {
  char whole[1024];
  size_t length;
  memset(streamed, 0, sizeof *streamed);
  streamed->most = most;
  GOOD(preface_session_stream(session, tokens, hear_text, streamed));
  GOOD(preface_session_text(session, whole, sizeof whole, &length));
  ASSERT(length == streamed->length && !strcmp(whole, streamed->text));
}

/* The same with `generation`, or as the task says; where nothing is told, the text is one that was drawn before. */
static void print_stream(preface_session *session, const preface_tokens *tokens, const preface_generation *generation) {
  static streamed streamed;
  GOOD(preface_session_set_generation(session, generation));
  stream(session, tokens, 0, &streamed);
#ifdef COUNT_ALLOCATIONS
  size_t before = counts();
  stream(session, tokens, 0, &streamed);
  ASSERT(counts() == before);
#endif
  printf("%s\n", streamed.text);
}

/* Each option of a text that is drawn, one beside the other: a shape and the strings that end it are told. */
static void print_streams(preface_session *session, const preface_tokens *tokens, size_t task, char **told) {
  const char *labels[] = {"w5 w9", "w17"};
  int32_t status;
  preface_generation plain = {sizeof plain, 7, 50, 0, 0, 0, 0, NULL, 0}, generation = plain;
  preface_constraint constraint = {sizeof constraint, labels, 2, NULL};
  static streamed streamed;
  print_stream(session, tokens, NULL);
  print_stream(session, tokens, &plain);
  stream(session, tokens, 2, &streamed);
  ASSERT(streamed.pieces == 2);
  printf("%s\n", streamed.text);
  generation.most_tokens = 5;
  print_stream(session, tokens, &generation);
  generation = plain;
  generation.top_k = 2;
  print_stream(session, tokens, &generation);
  generation.top_k = 0;
  generation.top_p = 0.25f;
  print_stream(session, tokens, &generation);
  generation = (preface_generation){sizeof generation, 0, 0, 0, 4, 0, 0, NULL, 0};
  print_stream(session, tokens, &generation);
  generation = plain;
  generation.stops = (const char *const *)told + 1;
  generation.stop_count = 2;
  print_stream(session, tokens, &generation);
  GOOD(preface_session_constrain(session, task, &constraint));
  print_stream(session, tokens, &plain);
  constraint.shape = told[0];
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_constrain(session, task, &constraint));
  expect_text(__LINE__, "labels or a shape, not both");
  constraint.label_count = 0;
  status = preface_session_constrain(session, task, &constraint);
  printf("%s\n", preface_status_name(status));
  if (status == PREFACE_OK) print_stream(session, tokens, &plain);
  GOOD(preface_session_constrain(session, task, NULL));
  print_stream(session, tokens, NULL);
}

/* Texts of several requests, each whole when it is told that it has ended. */
typedef struct together {
  size_t ended;
  streamed texts[REQUESTS];
} together;

static int32_t hear_one(void *context, size_t index, const char *text, size_t length) {
  together *together = context;
  ASSERT(index < REQUESTS && together->texts[index].pieces < SIZE_MAX);
  if (text) return hear_text(&together->texts[index], text, length);
  ASSERT(length == 0);
  together->texts[index].pieces = SIZE_MAX;
  together->ended++;
  return 0;
}

/* Requests of two lengths at once, of which the last is ended by who hears it, are the texts that come one by one. */
static void meet_together(preface_session *session, const preface_tokens *tokens, size_t task) {
  const preface_generation plain = {sizeof plain, 7, 50, 0, 0, 0, 0, NULL, 0};
  const preface_tokens *all[REQUESTS];
  preface_tokens shorter = *tokens;
  size_t tasks[REQUESTS], index;
  static together together;
  static streamed alone;
  shorter.count--;
  GOOD(preface_session_set_generation(session, &plain));
  for (index = 0; index < REQUESTS; index++) {
    tasks[index] = task;
    all[index] = index % 2 ? &shorter : tokens;
  }
  together.texts[REQUESTS - 1].most = 2;
  GOOD(preface_session_generate_all(session, REQUESTS, tasks, all, hear_one, &together));
  ASSERT(together.ended == REQUESTS);
  for (index = 0; index < REQUESTS; index++) {
    stream(session, all[index], index == REQUESTS - 1 ? 2 : 0, &alone);
    ASSERT(alone.length == together.texts[index].length && !strcmp(alone.text, together.texts[index].text));
  }
  tasks[1] = 7;
  EXPECT(PREFACE_NO_TASK, preface_session_generate_all(session, 2, tasks, all, hear_one, &together));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate_all(session, 1, tasks, all, NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate_all(session, 1, tasks, NULL, hear_one, &together));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate_all(session, 1, NULL, all, hear_one, &together));
  GOOD(preface_session_generate_all(session, 0, NULL, NULL, hear_one, &together));
  ASSERT(together.ended == REQUESTS);
  GOOD(preface_session_set_generation(session, NULL));
}

/* Options that no text has. */
static void meet_option_errors(preface_session *session, size_t task, size_t labels) {
  const char *texts[] = {"w5", ""}, *missing[] = {"w5", NULL}, *latin[] = {"\xe4"};
  preface_generation generation = {sizeof generation, 0, 0, 0, 0, 0, 0, texts, 2};
  preface_constraint constraint = {sizeof constraint, texts, 2, NULL};
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_set_generation(session, &generation));
  generation.stops = missing;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_set_generation(session, &generation));
  expect_text(__LINE__, "preface_generation.stops is a null pointer");
  generation.stops = latin;
  generation.stop_count = 1;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_set_generation(session, &generation));
  generation.stops = NULL;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_set_generation(session, &generation));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_constrain(session, task, &constraint));
  constraint.label_count = 1;
  EXPECT(PREFACE_OTHER_ANSWER, preface_session_constrain(session, labels, &constraint));
  EXPECT(PREFACE_NO_TASK, preface_session_constrain(session, 7, &constraint));
  constraint.size = 4;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_constrain(session, task, &constraint));
  constraint = (preface_constraint){sizeof constraint, NULL, 0, "[1]"};
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_constrain(session, task, &constraint));
  expect_text(__LINE__, "the shape is no JSON");
}

/* Calls that generate nothing; the task `labels` gives labels. */
static void meet_errors(preface_session *session, const preface_tokens *tokens, size_t task, size_t labels) {
  preface_generation sampling = {sizeof sampling, 0, 0, 0, 0, 0, 0, NULL, 0};
  static heard heard;
  said said;
  size_t length = 1;
  preface_answer *answer = ready(&said);
  EXPECT(PREFACE_OTHER_ANSWER, preface_session_answer_all(session, 1, &task, &tokens, &answer));
  GOOD(preface_session_generate(session, tokens, hear_busy, session));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate(session, tokens, NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate(session, NULL, hear, &heard));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_stream(session, tokens, NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_stream(session, NULL, hear_nothing, NULL));
  sampling.size = 4;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_set_generation(session, &sampling));
  GOOD(preface_session_activate(session, labels));
  EXPECT(PREFACE_OTHER_ANSWER, preface_session_generate(session, tokens, hear, &heard));
  EXPECT(PREFACE_OTHER_ANSWER, preface_session_stream(session, tokens, hear_nothing, NULL));
  ASSERT(heard.count == 0);
  GOOD(preface_session_answer_tokens(session, tokens, answer));
  ASSERT(answer->kind == PREFACE_LABEL && answer->text_length == 0);
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_text(session, NULL, 0, &length));
  ASSERT(length == 0);
}

int main(int arguments, char **argument) {
  preface_image *image;
  preface_session *session;
  preface_image_facts facts = {sizeof facts, 0, 0, 0, 0, 0, 0};
  preface_options options = {sizeof options, 0, 0, 0, 0, 0, 2};
  static text text;
  size_t task, labels;
  ASSERT(arguments == 9);
  GOOD(preface_image_open(argument[1], &image));
  GOOD(preface_image_describe(image, &facts));
  ASSERT(facts.kind == PREFACE_DECODER);
  GOOD(preface_session_open(image, &options, &session));
  preface_image_close(image);
  EXPECT(PREFACE_NO_TASK, preface_session_set_generation(session, NULL));
  GOOD(preface_session_load(session, argument[3], argument[2], &task));
  GOOD(preface_session_load(session, argument[4], argument[2], &labels));
  GOOD(preface_session_activate(session, task));
  print_text(session, argument[5]);
  GOOD(preface_session_encode(session, argument[5], NULL, room(&text)));
  print_draws(session, &text.tokens);
  print_streams(session, &text.tokens, task, argument + 6);
  meet_together(session, &text.tokens, task);
  meet_option_errors(session, task, labels);
  meet_errors(session, &text.tokens, task, labels);
  preface_session_close(session);
  return 0;
}
