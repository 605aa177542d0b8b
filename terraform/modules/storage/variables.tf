variable "name" { type = string }
variable "region" { type = string }
variable "account" { type = string }
variable "aws" {
  description = "AWS's partition, as in ARNs."
  type        = string
}
variable "retention" {
  description = "Days: logs, versions, runs."
  type        = object({ logs = number, versions = number, runs = number })
}
variable "protect" { type = bool }
