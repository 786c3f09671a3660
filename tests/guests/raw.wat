;; The smallest component of the world sluice:plugin/plugin, with room for what a test puts in:
;; `(; module ;)` is in the core module, `(; process ;)` in its function, `(; component ;)` in the component.
(component
  (type $types (instance
    (type $record (record (field "code" u32) (field "message" string)))
    (export "error" (type (eq $record)))
    (export "batch" (type (sub resource)))))
  (import "sluice:plugin/types@1.0.0" (instance $host (type $types)))
  (alias export $host "error" (type $error))
  (alias export $host "batch" (type $batch))
  (core func $drop (canon resource.drop $batch))
  (; component ;)
  (core module $module
    (import "host" "drop" (func $drop (param i32)))
    (memory (export "memory") 1)
    (; module ;)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    ;; 16 points to zeros: the result `ok`.
    (func (export "configure") (param i32 i32) (result i32) (i32.const 16))
    (func (export "process") (param $batch i32) (result i32)
      (; process ;)
      (i32.const 16)))
  (core instance $instance (instantiate $module (with "host" (instance (export "drop" (func $drop))))))
  (func $configure (param "config" string) (result (result (error $error)))
    (canon lift (core func $instance "configure") (memory $instance "memory") (realloc (func $instance "realloc"))))
  (func $process (param "messages" (borrow $batch)) (result (result (error $error)))
    (canon lift (core func $instance "process") (memory $instance "memory") (realloc (func $instance "realloc"))))
  (instance $stage (export "configure" (func $configure)) (export "process" (func $process)))
  (export "sluice:plugin/stage@1.0.0" (instance $stage)))
