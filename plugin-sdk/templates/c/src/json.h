// As much of JSON as this plugin needs: the text fields of an object, and setting one. Take a library for more.
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
  const char *at;
  size_t len;
} text_t;

// The value of the object's field `name`, if that is a string; a copy in UTF-8, to be given to json_free.
bool json_string(text_t object, const char *name, text_t *value);

// The object with its field `name` set to the string `value`; false if it is no JSON object. To be given to json_free.
bool json_set(text_t object, text_t name, text_t value, text_t *edited);

void json_free(text_t text);

#endif
