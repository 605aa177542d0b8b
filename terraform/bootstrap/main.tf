# Once per account: the bucket that holds the state of everything else, and the file that `terraform init` finds it by. Its own state is the
# local file beside this one; lost, it is `terraform import`ed, or nothing: the bucket is all there is.

terraform {
  required_version = "~> 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

variable "region" {
  description = "AWS region of the state, such as eu-west-1."
  type        = string
}

variable "name" {
  description = "Prefix of the bucket, and the name of the state in it."
  type        = string
  default     = "health-predict"
}

variable "protect" {
  description = "Refuse to remove a bucket that holds something."
  type        = bool
  default     = true
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "health-predict", name = "${var.name}-state", managed_by = "terraform" }
  }
}

data "aws_caller_identity" "current" {}

module "state" {
  source = "../modules/bucket"

  name     = "${var.name}-state-${data.aws_caller_identity.current.account_id}-${var.region}"
  versions = 365
  protect  = var.protect
}

output "backend" {
  description = "Contents of backend.hcl: `terraform output -raw backend > ../backend.hcl`."
  value       = <<-HCL
    bucket = "${module.state.id}"
    key    = "${var.name}.tfstate"
    region = "${var.region}"
  HCL
}
