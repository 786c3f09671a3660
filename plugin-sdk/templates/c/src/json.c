#include "json.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// How deep values may be within each other: the stack is small.
#define DEPTH_MAX 100

// A place in a text; it never goes beyond the end.
typedef struct {
  const char *at, *end;
} cursor_t;

static void skip_blanks(cursor_t *c) {
  while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
}

static bool take(cursor_t *c, char wanted) {
  if (c->at == c->end || *c->at != wanted) return false;
  c->at++;
  return true;
}

static bool skip_word(cursor_t *c, const char *word) {
  size_t len = strlen(word);
  if ((size_t)(c->end - c->at) < len || memcmp(c->at, word, len) != 0) return false;
  c->at += len;
  return true;
}

static int hex(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

static bool skip_string(cursor_t *c) {
  if (!take(c, '"')) return false;
  while (c->at < c->end && *c->at != '"') {
    if ((unsigned char)*c->at < 0x20) return false;
    if (*c->at++ != '\\') continue;
    if (c->at == c->end || strchr("\"\\/bfnrtu", *c->at) == NULL) return false;
    if (*c->at++ != 'u') continue;
    for (int i = 0; i < 4; i++, c->at++) {
      if (c->at == c->end || hex(*c->at) < 0) return false;
    }
  }
  return take(c, '"');
}

static bool skip_digits(cursor_t *c) {
  const char *start = c->at;
  while (c->at < c->end && *c->at >= '0' && *c->at <= '9') c->at++;
  return c->at > start;
}

static bool skip_number(cursor_t *c) {
  take(c, '-');
  if (!take(c, '0') && !skip_digits(c)) return false;
  if (take(c, '.') && !skip_digits(c)) return false;
  if (take(c, 'e') || take(c, 'E')) {
    if (!take(c, '+')) take(c, '-');
    return skip_digits(c);
  }
  return true;
}

static bool skip_value(cursor_t *c, int depth);

static bool skip_members(cursor_t *c, char open, char close, int depth) {
  if (depth == DEPTH_MAX || !take(c, open)) return false;
  skip_blanks(c);
  if (take(c, close)) return true;
  do {
    skip_blanks(c);
    if (open == '{') {
      if (!skip_string(c)) return false;
      skip_blanks(c);
      if (!take(c, ':')) return false;
    }
    if (!skip_value(c, depth + 1)) return false;
    skip_blanks(c);
  } while (take(c, ','));
  return take(c, close);
}

static bool skip_value(cursor_t *c, int depth) {
  skip_blanks(c);
  if (c->at == c->end) return false;
  switch (*c->at) {
  case '{': return skip_members(c, '{', '}', depth);
  case '[': return skip_members(c, '[', ']', depth);
  case '"': return skip_string(c);
  case 't': return skip_word(c, "true");
  case 'f': return skip_word(c, "false");
  case 'n': return skip_word(c, "null");
  default: return skip_number(c);
  }
}

static char *put_utf8(char *out, uint32_t point) {
  if (point < 0x80) {
    *out++ = (char)point;
  } else if (point < 0x800) {
    *out++ = (char)(0xc0 | point >> 6);
    *out++ = (char)(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    *out++ = (char)(0xe0 | point >> 12);
    *out++ = (char)(0x80 | (point >> 6 & 0x3f));
    *out++ = (char)(0x80 | (point & 0x3f));
  } else {
    *out++ = (char)(0xf0 | point >> 18);
    *out++ = (char)(0x80 | (point >> 12 & 0x3f));
    *out++ = (char)(0x80 | (point >> 6 & 0x3f));
    *out++ = (char)(0x80 | (point & 0x3f));
  }
  return out;
}

static uint32_t four_digits(const char *at) {
  return (uint32_t)(hex(at[0]) << 12 | hex(at[1]) << 8 | hex(at[2]) << 4 | hex(at[3]));
}

// What a string that skip_string has passed stands for; it never gets longer.
static bool unescaped(const char *at, const char *end, text_t *value) {
  char *start = malloc((size_t)(end - at) + 1), *out = start;
  if (start == NULL) return false;
  for (at++, end--; at < end;) {
    if (*at != '\\') {
      *out++ = *at++;
      continue;
    }
    at += 2;
    switch (at[-1]) {
    case 'b': *out++ = '\b'; break;
    case 'f': *out++ = '\f'; break;
    case 'n': *out++ = '\n'; break;
    case 'r': *out++ = '\r'; break;
    case 't': *out++ = '\t'; break;
    case 'u': {
      uint32_t point = four_digits(at);
      at += 4;
      if (point >= 0xd800 && point < 0xdc00 && end - at >= 6 && at[0] == '\\' && at[1] == 'u') {
        uint32_t low = four_digits(at + 2);
        if (low >= 0xdc00 && low < 0xe000) {
          point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
          at += 6;
        }
      }
      // Half of a pair is no character.
      out = put_utf8(out, point >= 0xd800 && point < 0xe000 ? 0xfffd : point);
      break;
    }
    default: *out++ = at[-1];
    }
  }
  *value = (text_t){start, (size_t)(out - start)};
  return true;
}

// Where the value of a field stands; empty, before the closing brace, if there is no such field. False: no JSON object.
static bool find(text_t object, text_t name, const char **value, const char **value_end, bool *first) {
  cursor_t c = {object.at, object.at + object.len};
  *value = NULL;
  skip_blanks(&c);
  cursor_t all = c;
  if (!skip_members(&all, '{', '}', 0)) return false;
  const char *close = all.at - 1;
  skip_blanks(&all);
  if (all.at != all.end) return false;
  take(&c, '{');
  skip_blanks(&c);
  *first = c.at == close;
  while (c.at < close) {
    skip_blanks(&c);
    const char *start = c.at;
    text_t found;
    skip_string(&c);
    if (!unescaped(start, c.at, &found)) return false;
    skip_blanks(&c);
    take(&c, ':');
    skip_blanks(&c);
    // Of several fields of one name the last one counts, as everywhere.
    const char *at = c.at;
    skip_value(&c, 1);
    if (found.len == name.len && memcmp(found.at, name.at, name.len) == 0) *value = at, *value_end = c.at;
    json_free(found);
    skip_blanks(&c);
    take(&c, ',');
  }
  if (*value == NULL) *value = *value_end = close;
  return true;
}

bool json_string(text_t object, const char *name, text_t *value) {
  const char *at, *end;
  bool first;
  if (!find(object, (text_t){name, strlen(name)}, &at, &end, &first)) return false;
  return at < end && *at == '"' && unescaped(at, end, value);
}

static char *put_string(char *out, text_t text) {
  *out++ = '"';
  for (size_t i = 0; i < text.len; i++) {
    unsigned char byte = (unsigned char)text.at[i];
    if (byte == '"' || byte == '\\') {
      *out++ = '\\';
      *out++ = (char)byte;
    } else if (byte < 0x20) {
      out += sprintf(out, "\\u%04x", byte);
    } else {
      *out++ = (char)byte;
    }
  }
  *out++ = '"';
  return out;
}

bool json_set(text_t object, text_t name, text_t value, text_t *edited) {
  const char *at, *end;
  bool first;
  if (!find(object, name, &at, &end, &first)) return false;
  // A character takes six bytes at most; besides, there are a comma, a colon and four quotes.
  char *start = malloc(object.len + 6 * (name.len + value.len) + 6), *out = start;
  if (start == NULL) return false;
  size_t before = (size_t)(at - object.at), after = (size_t)(object.at + object.len - end);
  memcpy(out, object.at, before);
  out += before;
  if (at == end) {
    if (!first) *out++ = ',';
    out = put_string(out, name);
    *out++ = ':';
  }
  out = put_string(out, value);
  memcpy(out, end, after);
  *edited = (text_t){start, (size_t)(out - start) + after};
  return true;
}

void json_free(text_t text) { free((void *)text.at); }
