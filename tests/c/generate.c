/*
 * Lets a task go on with a text through runtime/c/include/preface.h.
 *
 *   generate IMAGE TRUST BUNDLE LABELS TEXT
 *
 * LABELS is a bundle of a task that gives labels. Prints the text that the task of BUNDLE generates, then its token ids
 * as they are drawn at temperature 50 from seed 7. With COUNT_ALLOCATIONS it sees to it that neither a token nor a draw
 * allocates.
 */
#include "check.h"

/* The tokens that were heard. */
typedef struct heard {
  size_t count;
  uint32_t ids[TOKENS];
} heard;

static void hear(void *context, uint32_t token) {
  heard *heard = context;
  ASSERT(heard->count < TOKENS);
  heard->ids[heard->count++] = token;
}

/* A session answers nobody else meanwhile. */
static void hear_busy(void *session, uint32_t token) {
  size_t count;
  (void)token;
  EXPECT(PREFACE_BUSY, preface_session_task_count(session, &count));
}

static void generate(preface_session *session, const preface_tokens *tokens, heard *heard) {
  heard->count = 0;
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
  preface_sampling sampling = {sizeof sampling, 7, 50, 0, 0, 0};
  static heard probable, drawn, again;
  size_t index;
  generate(session, tokens, &probable);
  GOOD(preface_session_sample(session, &sampling));
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
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_sample(session, &sampling));
  expect_text(__LINE__, "temperature -1 is outside its range");
  sampling.temperature = 1;
  sampling.top_k = 1;
  GOOD(preface_session_sample(session, &sampling));
  generate(session, tokens, &again);
  ASSERT(probable.count == again.count && !memcmp(probable.ids, again.ids, again.count * sizeof *again.ids));
  for (index = 0; index < drawn.count; index++) printf(" %" PRIu32, drawn.ids[index]);
  putchar('\n');
}

/* Calls that generate nothing; the task `labels` gives labels. */
static void meet_errors(preface_session *session, const preface_tokens *tokens, size_t task, size_t labels) {
  preface_sampling sampling = {sizeof sampling, 0, 0, 0, 0, 0};
  static heard heard;
  said said;
  size_t length = 1;
  preface_answer *answer = ready(&said);
  EXPECT(PREFACE_OTHER_ANSWER, preface_session_answer_all(session, 1, &task, &tokens, &answer));
  GOOD(preface_session_generate(session, tokens, hear_busy, session));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate(session, tokens, NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_generate(session, NULL, hear, &heard));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_sample(session, NULL));
  sampling.size = 4;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_sample(session, &sampling));
  GOOD(preface_session_activate(session, labels));
  EXPECT(PREFACE_OTHER_ANSWER, preface_session_generate(session, tokens, hear, &heard));
  ASSERT(heard.count == 0);
  GOOD(preface_session_answer_tokens(session, tokens, answer));
  ASSERT(answer->kind == PREFACE_LABEL && answer->text_length == 0);
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_text(session, NULL, 0, &length));
  ASSERT(length == 0);
}

int main(int arguments, char **argument) {
  preface_image *image;
  preface_session *session;
  preface_sampling sampling = {sizeof sampling, 0, 0, 0, 0, 0};
  preface_image_facts facts = {sizeof facts, 0, 0, 0, 0, 0, 0};
  static text text;
  size_t task, labels;
  ASSERT(arguments == 6);
  GOOD(preface_image_open(argument[1], &image));
  GOOD(preface_image_describe(image, &facts));
  ASSERT(facts.kind == PREFACE_DECODER);
  GOOD(preface_session_open(image, NULL, &session));
  preface_image_close(image);
  EXPECT(PREFACE_NO_TASK, preface_session_sample(session, &sampling));
  GOOD(preface_session_load(session, argument[3], argument[2], &task));
  GOOD(preface_session_load(session, argument[4], argument[2], &labels));
  GOOD(preface_session_activate(session, task));
  print_text(session, argument[5]);
  GOOD(preface_session_encode(session, argument[5], NULL, room(&text)));
  print_draws(session, &text.tokens);
  meet_errors(session, &text.tokens, task, labels);
  preface_session_close(session);
  return 0;
}
