variable "repositories" { type = set(string) }
variable "key_arn" { type = string }
variable "protect" { type = bool }
