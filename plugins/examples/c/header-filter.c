// Passes the messages whose header has the wanted value, drops the others.
#include <string.h>

#include "json.h"
#include "plugin.h"

// What a column's length says of a message that has no such header.
#define ABSENT UINT32_MAX

static text_t header, wanted;

bool exports_sluice_plugin_stage_configure(plugin_string_t *config, exports_sluice_plugin_stage_error_t *err) {
  text_t text = {(const char *)config->ptr, config->len};
  const char *wrong = NULL;
  if (!json_string(text, "header", &header)) wrong = "'header' is missing from the config";
  if (!json_string(text, "value", &wanted)) wrong = "'value' is missing from the config";
  plugin_string_free(config);
  if (wrong == NULL) return true;
  err->code = 1;
  plugin_string_dup(&err->message, wrong);
  return false;
}

bool exports_sluice_plugin_stage_process(exports_sluice_plugin_stage_borrow_batch_t messages,
                                         exports_sluice_plugin_stage_error_t *err) {
  (void)err;
  plugin_string_t name = {(uint8_t *)header.at, header.len}, reason;
  plugin_string_set(&reason, "another value");
  sluice_plugin_types_column_t column;
  sluice_plugin_types_method_batch_header_column(messages, &name, &column);
  const uint8_t *value = column.data.ptr;
  for (uint32_t i = 0; i < column.lens.len; i++) {
    uint32_t len = column.lens.ptr[i];
    if (len == ABSENT) {
      sluice_plugin_types_method_batch_drop_message(messages, i, &reason);
      continue;
    }
    if (len != wanted.len || memcmp(value, wanted.at, len) != 0) {
      sluice_plugin_types_method_batch_drop_message(messages, i, &reason);
    }
    value += len;
  }
  sluice_plugin_types_column_free(&column);
  return true;
}
